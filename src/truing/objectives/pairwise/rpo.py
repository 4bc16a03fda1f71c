"""DPO with a supervised term on the chosen answer.

    NLL = −log π(chosen|x), per token of the sequence or summed
    L   = (1/P) Σ_pairs [ −log σ( β (ρ(chosen) − ρ(rejected)) ) + η NLL ]

DPO alone only widens the margin and may make both answers rarer; the second term keeps the
chosen one likely. As regularised preference optimisation (RPO) η is small and guards against
over-optimisation; with η = 1 this is iterative reasoning preference optimisation, `irpo`.

Gradient: DPO's, and −η ∇log π(chosen) that does not fade as pairs are decided: from some margin
on it is supervised fine-tuning.
Implementations: TRL averages the NLL over all tokens of the batch; LLaMA-Factory and OpenRLHF over
those of each sequence, as here, so that every pair weighs the same.
Source: Liu et al. 2024, "Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly
an Adversarial Regularizer" (arXiv 2405.16436), section 5; Pang et al. 2024, "Iterative Reasoning
Preference Optimization" (arXiv 2404.19733).

    >>> worked(RPO(beta=0.1, nll_coef=0.005))
    0.636349
    >>> worked(RPO(beta=0.1, nll_coef=1, nll_average="sum"))
    2.132599
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Metric, mean_of
from truing.objectives.base import KNOBS
from truing.objectives.pairwise._declared import NO_MARGIN, Average, NonNegative, Positive
from truing.objectives.pairwise._pairs import PairObjective, Pairs, nll_of
from truing.objectives.pairwise.dpo import dpo_loss


@dataclass(frozen=True, config=KNOBS)
class RPO(PairObjective):
    """DPO plus η times the chosen answer's negative log-likelihood.

    Shapes: logps_N and reference_logps_N in nats. Raises nothing of its own. Departures: none. At
    the reference the loss is ln 2 + η NLL, which depends on the data.
    """

    beta: Positive = 0.1
    """β > 0: larger stays closer to the reference. 0.01 in RPO, 0.1 in IRPO."""
    nll_coef: NonNegative = 0.005
    """η ≥ 0: larger is closer to supervised fine-tuning. 0 is DPO; 0.005 in RPO, 1 in IRPO."""
    nll_average: Average = "sequence"
    """Per token of each sequence, or summed (then long answers weigh more)."""

    step_zero = NO_MARGIN

    def pair_losses(self, pairs: Pairs) -> Tensor:
        dpo_P = dpo_loss(pairs.chosen.ratio_P, pairs.rejected.ratio_P, self.beta)
        return dpo_P + self.nll_coef * nll_of(pairs.chosen, self.nll_average)

    def more_metrics(self, pairs: Pairs) -> dict[str, Metric]:
        return {"nll_loss": mean_of(nll_of(pairs.chosen, self.nll_average))}
