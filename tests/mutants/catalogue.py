"""Every mutant, room by room."""

from __future__ import annotations

from . import (
    credit,
    engine,
    exact,
    listwise_and_unpaired,
    models,
    numbers,
    pairwise,
    pairwise_sides,
    policy_gradient,
    reward,
    rewards,
    rollouts,
    sampling,
    training,
    wiring,
)
from .mutant import Mutant

ROOMS = (
    numbers,
    models,
    training,
    wiring,
    engine,
    rollouts,
    sampling,
    credit,
    policy_gradient,
    pairwise,
    pairwise_sides,
    reward,
    rewards,
    listwise_and_unpaired,
    exact,
)
MUTANTS: tuple[Mutant, ...] = tuple(mutant for room in ROOMS for mutant in room.MUTANTS)
assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
