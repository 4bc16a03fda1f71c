"""SimPO: the average log-prob is the reward, with a target margin and no reference.

    ℓ̄(y) = log π(y|x) / |y|
    L    = −(1/P) Σ_pairs log σ( β (ℓ̄(chosen) − ℓ̄(rejected)) − γ ),   γ = β · gamma_beta_ratio

The reward is what decoding ranks by, and length earns nothing. Nothing holds the policy near a
reference but the learning rate, which is why 3e-7 to 1e-6 are the paper's. `sft_weight` adds
that many times the chosen answer's NLL per token.

Gradient: −β σ(γ − β (ℓ̄(chosen) − ℓ̄(rejected))) (∇ℓ̄(chosen) − ∇ℓ̄(rejected)): pairs pull strongly
until they are won by γ/β nats per token.
Implementations: the authors' code takes γ/β, as here; TRL's and LLaMA-Factory's take γ itself.
TRL's inherited β of 0.1 is not SimPO's.
Source: Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward"
(arXiv 2405.14734), eq. 6.

    >>> worked(SimPO(beta=2, gamma_beta_ratio=0.5))
    0.693147
    >>> worked(SimPO(beta=2, gamma_beta_ratio=0.25, sft_weight=1))
    1.224077
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.batch import Metric, mean_of
from truing.objectives.base import KNOBS
from truing.objectives.pairwise._declared import REFERENCE_FREE, NonNegative, Positive
from truing.objectives.pairwise._pairs import PairObjective, Pairs, Side, nll_of


def simpo_loss(chosen_mean_P: Tensor, rejected_mean_P: Tensor, beta: float, gamma: float) -> Tensor:
    """−log σ(β (ℓ̄_w − ℓ̄_l) − γ) per pair, from log-probs per token. Shape [P]."""
    return -logsigmoid(beta * (chosen_mean_P - rejected_mean_P) - gamma)


@dataclass(frozen=True, config=KNOBS)
class SimPO(PairObjective):
    """A contrast of log-probs per token, with a margin.

    Shapes: logps_N in nats. Raises nothing of its own. Departures: `sft_weight` is not in the
    paper, and off by default.
    """

    beta: Positive = 2.0
    """β > 0: weight of a nat per token; larger decides pairs at smaller margins. 2 to 2.5 in the
    paper, 10 with a strong reward model's labels."""
    gamma_beta_ratio: NonNegative = 0.5
    """γ/β ≥ 0, the target margin in nats per token: larger separates further and fits less
    well. 0.1 to 0.8 in the paper, start at 0.5."""
    sft_weight: NonNegative = 0.0
    """Weight ≥ 0 of the chosen answer's NLL per token: larger is a stronger leash. 0 in the
    paper."""

    needs = REFERENCE_FREE

    def rewards(self, side: Side) -> Tensor:
        return self.beta * side.mean_logp_P

    def pair_losses(self, pairs: Pairs) -> Tensor:
        gamma = self.beta * self.gamma_beta_ratio
        chosen_P, rejected_P = pairs.chosen.mean_logp_P, pairs.rejected.mean_logp_P
        contrast_P = simpo_loss(chosen_P, rejected_P, self.beta, gamma)
        return contrast_P + self.sft_weight * nll_of(pairs.chosen, "sequence")

    def more_metrics(self, pairs: Pairs) -> dict[str, Metric]:
        return {"nll_loss": mean_of(nll_of(pairs.chosen, "sequence"))}
