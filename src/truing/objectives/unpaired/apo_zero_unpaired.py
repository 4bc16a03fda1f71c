"""Anchored preference optimisation for single answers: raise the good, lower the bad, from zero.

    ρ(y) = log π(y|x) − log π_ref(y|x)
    L    = (1/C) Σ λ_D (1 − σ(βρ))     desirable
                 λ_U (1 − σ(−βρ))      undesirable

KTO with its reference point fixed at the reference policy (z₀ = 0): no mismatched completions to
run, and nothing couples the answers of a step. Meant for data that are better than the model, as
the likelihood of desirable answers must rise in itself.

Gradient: ∓λβ σ(1−σ): λβ/4 at the reference, fading on both sides.
Implementations: TRL's `apo_zero_unpaired`, the same.
Source: D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions:
Addressing Underspecification in Alignment" (arXiv 2408.06266), section 4; the unpaired form is
KTO's: Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization"
(arXiv 2402.01306), section 4.1, eq. 7.

    >>> worked(APOZeroUnpaired(beta=0.1))
    0.484381
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.objectives.base import KNOBS
from truing.objectives.unpaired._verdicts import VerdictObjective, Verdicts
from truing.objectives.unpaired.kto import kto_loss


@dataclass(frozen=True, config=KNOBS)
class APOZeroUnpaired(VerdictObjective):
    """A saturating value of each answer's log-ratio, judged from the reference policy.

    Shapes: logps_N and reference_logps_N in nats, label_C. Raises nothing of its own. Departures:
    none.
    """

    beta: Annotated[float, Field(gt=0)] = 0.1
    """β > 0: larger stays closer to the reference and saturates sooner. 0.1 in the paper."""
    desirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """λ_D > 0: weight of desirable answers; raise the one of the rarer kind. 1 in the paper."""
    undesirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """λ_U > 0: weight of undesirable answers. 1 in the paper."""

    def verdict_losses(self, verdicts: Verdicts) -> Tensor:
        return kto_loss(verdicts.ratio_U, verdicts.desirable_U, 0.0, self.beta)
