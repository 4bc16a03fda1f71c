"""Anchored preference optimisation, zero: chosen answers up, rejected ones down.

    r̂ = β ρ,   ρ = log π − log π_ref, summed over tokens
    L = (1/P) Σ_pairs [ 1 − σ(r̂(chosen)) + σ(r̂(rejected)) ]

For winners that are better than what the policy writes: each side is anchored to the reference
by itself, so the chosen answer does get likelier. Bounded, between 0 and 2; at the reference 1.
For winners that are worse, see `apo_down`.

Gradient: (−¼, +¼) β on the two sides at step 0; a side that has moved far, either way, is left
alone.
Implementations: TRL `apo_zero` agrees.
Source: D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions:
Addressing Underspecification in Alignment" (arXiv 2408.06266), eq. 7.

    >>> worked(APOZero(beta=0.1))
    0.968761
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.objectives.base import KNOBS
from truing.objectives.pairwise._declared import Positive, at_reference
from truing.objectives.pairwise._pairs import PairObjective, Pairs


def apo_zero_loss(chosen_reward_P: Tensor, rejected_reward_P: Tensor) -> Tensor:
    """1 − σ(r̂_w) + σ(r̂_l) per pair, from implicit rewards. Shape [P]."""
    return (-chosen_reward_P).sigmoid() + rejected_reward_P.sigmoid()


@dataclass(frozen=True, config=KNOBS)
class APOZero(PairObjective):
    """Each side pushed away from the reference by itself, the chosen one up.

    Shapes: logps_N and reference_logps_N in nats. Raises nothing of its own. Departures: none.
    """

    beta: Positive = 0.1
    """β > 0: larger saturates sooner and stays closer to the reference. 0.1 in the paper."""

    step_zero = at_reference(1.0)

    def pair_losses(self, pairs: Pairs) -> Tensor:
        return apo_zero_loss(self.rewards(pairs.chosen), self.rewards(pairs.rejected))
