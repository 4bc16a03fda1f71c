"""Self-play preference optimisation: regress each log-ratio to its share of the win rate.

    ρ = log π − log π_ref, summed over tokens;   p = P(chosen ≻ rejected)
    L = (1/P) Σ_pairs [ (ρ(chosen) − (p−½)/β)² + (ρ(rejected) − (½−p)/β)² ]

One round of multiplicative weights against the reference: π ∝ π_ref exp(P(y ≻ π_ref)/β). Labels
are taken as p = 1, or as the rows' probability with `soft_labels`. It needs no Bradley-Terry
model, since win rates are regressed, not rewards. Hard labels give 1/(2β²) at the reference.

Gradient: 2 (ρ − target) per nat on each side: it does not saturate, and reverses beyond the
target of ±1/(2β) nats.
Implementations: TRL `sppo_hard` is the hard form; the official code reads win rates estimated from
several samples, which are the soft labels.
Source: Wu et al. 2024, "Self-Play Preference Optimization for Language Model Alignment"
(arXiv 2405.00675), algorithm 1, eq. 4.7.

    >>> worked(SPPO(beta=0.001))
    498750.8125
    >>> worked(SPPO(beta=0.1, soft_labels=True))
    11.3125
"""

from __future__ import annotations

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.objectives.base import KNOBS, FromFields
from truing.objectives.pairwise._declared import (
    NO_MARGIN,
    Expected,
    Positive,
    at_reference,
)
from truing.objectives.pairwise._pairs import PairObjective, Pairs


def sppo_loss(
    chosen_ratio_P: Tensor, rejected_ratio_P: Tensor, probability_P: Tensor, beta: float
) -> Tensor:
    """(ρ_w − (p−½)/β)² + (ρ_l + (p−½)/β)² per pair, log-ratios in nats. Shape [P]."""
    target_P = (probability_P - 0.5) / beta
    return (chosen_ratio_P - target_P).square() + (rejected_ratio_P + target_P).square()


@dataclass(frozen=True, config=KNOBS)
class SPPO(PairObjective):
    """Squared distance of each side's log-ratio from (P − ½)/β.

    Shapes: logps_N and reference_logps_N in nats, probability_G in [0, 1]. Raises nothing of its
    own. Departures: a pair is two samples of the sum over answers; the reference is the model of
    the last round.
    """

    beta: Positive = 0.001
    """β > 0, one over the paper's η: larger stays closer to the reference. 0.001 in the paper."""
    soft_labels: bool = False
    """Whether the rows' `probability` is the win rate; otherwise the chosen side always wins."""

    @property
    def required(self) -> frozenset[str]:
        return self.needs | {"probability_G"} if self.soft_labels else self.needs

    @FromFields
    def step_zero(self) -> Expected:
        return NO_MARGIN if self.soft_labels else at_reference(1 / (2 * self.beta**2))

    def pair_losses(self, pairs: Pairs) -> Tensor:
        chosen_P, rejected_P = pairs.chosen.ratio_P, pairs.rejected.ratio_P
        wins_P = pairs.batch["probability_G"] if self.soft_labels else torch.ones_like(chosen_P)
        return sppo_loss(chosen_P, rejected_P, wins_P, self.beta)
