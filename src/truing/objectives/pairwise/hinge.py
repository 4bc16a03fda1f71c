"""The hinge on DPO's margin: a pair that is won by 1/β nats is left alone.

    h = β (ρ(chosen) − ρ(rejected)),   ρ = log π − log π_ref, summed over tokens
    L = (1/P) Σ_pairs max(0, 1 − h)

A support vector machine where DPO is a logistic regression: 1/β is the margin asked for. Any
policy that wins every pair by it is optimal, so the margin stays finite even if the labels never
disagree. At the reference the loss is 1. SLiC-HF's own loss has no reference: that is `slic`.

Gradient: −β (∇log π(chosen) − ∇log π(rejected)) on every pair inside the margin, twice DPO's at
step 0, and none outside.
Implementations: TRL `hinge` and torchtune's RSO loss agree.
Source: Liu et al. 2023, "Statistical Rejection Sampling Improves Preference Optimization"
(arXiv 2309.06657), eq. 10; its model: Zhao et al. 2023, "SLiC-HF: Sequence Likelihood Calibration
with Human Feedback" (arXiv 2305.10425), section 2, eq. 4.

    >>> worked(Hinge(beta=0.1))
    0.875
"""

from __future__ import annotations

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.objectives.base import KNOBS
from truing.objectives.pairwise._declared import Positive, at_reference
from truing.objectives.pairwise._pairs import PairObjective, Pairs


def hinge_loss(margin_P: Tensor) -> Tensor:
    """max(0, 1 − h) per pair, from reward margins h. Shape [P]."""
    return torch.relu(1 - margin_P)


@dataclass(frozen=True, config=KNOBS)
class Hinge(PairObjective):
    """The hinge loss of the implicit reward's margin.

    Shapes: logps_N and reference_logps_N in nats. Raises nothing of its own. Departures: none; at
    the kink itself the gradient is 0.
    """

    beta: Positive = 0.1
    """β > 0: one over the margin in nats, so larger stops sooner and stays closer to the
    reference. 0.05 in RSO."""

    step_zero = at_reference(1.0)

    def pair_losses(self, pairs: Pairs) -> Tensor:
        return hinge_loss(self.margins(pairs))
