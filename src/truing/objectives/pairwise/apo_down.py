"""Anchored preference optimisation, down: both answers down, the rejected one further.

    r̂ = β ρ,   ρ = log π − log π_ref, summed over tokens
    L = (1/P) Σ_pairs [ σ(r̂(chosen)) + 1 − σ(r̂(chosen) − r̂(rejected)) ]

For winners that are worse than what the policy writes already: their order is learnt without
making them likelier. Bounded, between 0 and 2; at the reference 1. For winners that are better,
see `apo_zero`.

Gradient: (0, +¼) β on the two sides at step 0: only the rejected answer moves, and the chosen one
follows as soon as the margin has opened.
Implementations: TRL `apo_down` agrees.
Source: D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions:
Addressing Underspecification in Alignment" (arXiv 2408.06266), eq. 8.

    >>> worked(APODown(beta=0.1))
    0.981288
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.objectives.base import KNOBS
from truing.objectives.pairwise._declared import Positive, at_reference
from truing.objectives.pairwise._pairs import PairObjective, Pairs


def apo_down_loss(chosen_reward_P: Tensor, rejected_reward_P: Tensor) -> Tensor:
    """σ(r̂_w) + 1 − σ(r̂_w − r̂_l) per pair, from implicit rewards. Shape [P]."""
    return chosen_reward_P.sigmoid() + (rejected_reward_P - chosen_reward_P).sigmoid()


@dataclass(frozen=True, config=KNOBS)
class APODown(PairObjective):
    """The chosen side held down, the rejected one pushed below it.

    Shapes: logps_N and reference_logps_N in nats. Raises nothing of its own. Departures: none.
    """

    beta: Positive = 0.1
    """β > 0: larger saturates sooner and stays closer to the reference. 0.1 in the paper."""

    step_zero = at_reference(1.0)

    def pair_losses(self, pairs: Pairs) -> Tensor:
        return apo_down_loss(self.rewards(pairs.chosen), self.rewards(pairs.rejected))
