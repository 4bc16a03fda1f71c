"""ORPO: supervised fine-tuning with an odds ratio beside it, in one stage and without a reference.

    P(y)    = exp(log π(y|x) / |y|),   odds = P / (1 − P)
    L       = (1/P) Σ_pairs [ NLL(chosen) − λ log σ( log odds(chosen)/odds(rejected) ) ]

NLL is per token of the sequence. The supervised term learns the task, the odds ratio, small and
bounded in its pull, keeps the rejected style from being learnt along with it.

Gradient: −∇ℓ̄(chosen), and λ σ(−o)(−∇ℓ̄(chosen)/(1−P(chosen)) + ∇ℓ̄(rejected)/(1−P(rejected))) with o
the log odds ratio: answers that are nearly certain move the most.
Implementations: TRL takes the NLL over prompt and completion, the official code over all tokens or
the completion, LLaMA-Factory over the completion, as here. The official code's name for λ is alpha,
with 1 as its default.
Source: Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model"
(arXiv 2403.07691), eq. 6 and 7.

    >>> worked(ORPO(beta=0.1))
    0.787055
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.batch import Metric, mean_of
from truing.objectives.base import KNOBS
from truing.objectives.pairwise._declared import REFERENCE_FREE, Positive
from truing.objectives.pairwise._pairs import PairObjective, Pairs, Side, nll_of
from truing.ops import log1mexp

CERTAIN = -1e-6
"""A log-prob per token above which an answer counts as certain: float32 cannot tell it from 0."""


def log_odds(mean_logp_P: Tensor) -> Tensor:
    """log P/(1−P) of P = exp(log-prob per token); finite at P = 1. Shape [P]."""
    capped_P = mean_logp_P.clamp(max=CERTAIN)
    return capped_P - log1mexp(capped_P)


@dataclass(frozen=True, config=KNOBS)
class ORPO(PairObjective):
    """The chosen answer's NLL and λ times the log-sigmoid of the log odds ratio.

    Shapes: logps_N in nats. Raises nothing of its own. Departures: P = 1 has infinite odds, so
    log P is capped at −1e-6 inside them (log odds of 13.8); from there on, as for an empty
    completion, the odds give no gradient. NLL is over the completion only.
    """

    beta: Positive = 0.1
    """λ > 0: weight of the odds ratio; larger contrasts more against plain fine-tuning. 0.1 and
    0.2 in the paper."""

    needs = REFERENCE_FREE

    def rewards(self, side: Side) -> Tensor:
        return self.beta * side.mean_logp_P

    def log_odds_ratio(self, pairs: Pairs) -> Tensor:
        """How much likelier, in log odds, the chosen answer is. Shape [P]."""
        return log_odds(pairs.chosen.mean_logp_P) - log_odds(pairs.rejected.mean_logp_P)

    def pair_losses(self, pairs: Pairs) -> Tensor:
        contrast_P = -logsigmoid(self.log_odds_ratio(pairs))
        return nll_of(pairs.chosen, "sequence") + self.beta * contrast_P

    def more_metrics(self, pairs: Pairs) -> dict[str, Metric]:
        log_odds_ratio_P = self.log_odds_ratio(pairs)
        return {
            "nll_loss": mean_of(nll_of(pairs.chosen, "sequence")),
            "log_odds_chosen": mean_of(log_odds_ratio_P),
            "log_odds_ratio": mean_of(logsigmoid(log_odds_ratio_P)),
        }
