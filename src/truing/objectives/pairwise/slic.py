"""Sequence likelihood calibration: a hinge on log-probs, held by likelihood, without a reference.

    ℓ(y) = log π(y|x), summed over the completion's tokens
    L    = (1/P) Σ_pairs [ max(0, δ − ℓ(chosen) + ℓ(rejected)) − λ ℓ(chosen) ]

Pairs that are won by δ nats are left alone; the second term is the leash. With a reference, see
`hinge`.

Gradient: −(∇ℓ(chosen) − ∇ℓ(rejected)) on every pair inside the margin, none outside, and
−λ ∇ℓ(chosen) always.
Implementations: HALOs sums the calibration but takes the regulariser per token; here both are sums,
as in the paper. TRL's `hinge` has a reference and no regulariser.
Source: Zhao et al. 2023, "SLiC-HF: Sequence Likelihood Calibration with Human Feedback"
(arXiv 2305.10425), section 2, eq. 4.

    >>> worked(SLiC(delta=3, nll_coef=0.1))
    0.9
"""

from __future__ import annotations

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Metric, mean_of
from truing.objectives.base import KNOBS
from truing.objectives.pairwise._declared import REFERENCE_FREE, NonNegative, Positive
from truing.objectives.pairwise._pairs import PairObjective, Pairs, Side, nll_of


def slic_loss(chosen_logps_P: Tensor, rejected_logps_P: Tensor, delta: float) -> Tensor:
    """max(0, δ − ℓ_w + ℓ_l) per pair, from summed log-probs in nats. Shape [P]."""
    return torch.relu(delta - chosen_logps_P + rejected_logps_P)


@dataclass(frozen=True, config=KNOBS)
class SLiC(PairObjective):
    """The hinge of summed log-probs plus λ times the chosen answer's summed NLL.

    Shapes: logps_N in nats. Raises nothing of its own. Departures: the regulariser is on the
    chosen answer of the pair, where the paper also allows a supervised target of its own.
    """

    delta: Positive = 1.0
    """δ > 0, the margin in nats: larger separates further. 1 in HALOs."""
    nll_coef: NonNegative = 0.1
    """λ ≥ 0: larger is closer to supervised fine-tuning; 0 has no leash. 0.1 in HALOs."""

    needs = REFERENCE_FREE

    def rewards(self, side: Side) -> Tensor:
        return side.logps_P

    def pair_losses(self, pairs: Pairs) -> Tensor:
        hinge_P = slic_loss(pairs.chosen.logps_P, pairs.rejected.logps_P, self.delta)
        return hinge_P + self.nll_coef * nll_of(pairs.chosen, "sum")

    def more_metrics(self, pairs: Pairs) -> dict[str, Metric]:
        return {"nll_loss": mean_of(nll_of(pairs.chosen, "sum"))}
