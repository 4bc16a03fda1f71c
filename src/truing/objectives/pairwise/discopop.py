"""DiscoPOP: a blend of logistic and exponential loss that a language model found.

    h = β (ρ(chosen) − ρ(rejected)),   ρ = log π − log π_ref, summed over tokens
    L = (1/P) Σ_pairs [ (1 − σ(h/τ)) (−log σ(h)) + σ(h/τ) e^−h ]

DPO on lost pairs, the exponential loss on won ones, with a soft switch of width τ at h = 0. It is
not convex: between the two a pair may rest at a small loss. At the reference it is (ln 2 + 1)/2.

Gradient: lost pairs pull as in DPO and won pairs with e^−h, which fades at the same rate; around
h = 0 the switch itself pushes, by (1 − ln 2)/(4τ), against the order of the labels.
Implementations: TRL `discopop` agrees.
Source: Lu et al. 2024, "Discovering Preference Optimization Algorithms with and for Large Language
Models" (arXiv 2406.08414), eq. 5.

    >>> worked(DiscoPOP(beta=0.05, tau=0.05))
    0.877719
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.objectives.base import KNOBS
from truing.objectives.pairwise._declared import Positive, at_reference
from truing.objectives.pairwise._pairs import PairObjective, Pairs


def discopop_loss(margin_P: Tensor, tau: float) -> Tensor:
    """σ(−h/τ)(−log σ(h)) + σ(h/τ) e^−h per pair, from reward margins h; τ ≤ 1. Shape [P]."""
    logistic_P = (-margin_P / tau).sigmoid() * -logsigmoid(margin_P)
    # one exponent: on lost pairs e^−h alone overflows before σ(h/τ), which is smaller, meets it
    exponential_P = torch.exp(logsigmoid(margin_P / tau) - margin_P)
    return logistic_P + exponential_P


@dataclass(frozen=True, config=KNOBS)
class DiscoPOP(PairObjective):
    """The log-ratio modulated loss.

    Shapes: logps_N and reference_logps_N in nats. Raises nothing of its own. Departures: τ above 1
    is refused, as the exponential would then grow on lost pairs.
    """

    beta: Positive = 0.05
    """β > 0: larger stays closer to the reference. 0.05 in the paper."""
    tau: Annotated[float, Field(gt=0, le=1)] = 0.05
    """τ in (0, 1]: width of the switch; larger blends the two losses over more of the margin.
    0.05 in the paper."""

    step_zero = at_reference((math.log(2) + 1) / 2)

    def pair_losses(self, pairs: Pairs) -> Tensor:
        return discopop_loss(self.margins(pairs), self.tau)
