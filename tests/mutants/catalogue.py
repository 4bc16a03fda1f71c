"""Every mutant, room by room."""

from __future__ import annotations

from . import (
    credit,
    durability_numerics,
    engine,
    exact,
    experiments,
    listwise_and_unpaired,
    models,
    numbers,
    on_policy,
    online,
    outside_rewards,
    pairwise,
    pairwise_sides,
    policy_gradient,
    reviewed,
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
    on_policy,
    online,
    pairwise,
    pairwise_sides,
    reward,
    rewards,
    listwise_and_unpaired,
    exact,
    experiments,
    outside_rewards,
    reviewed,
    durability_numerics,
)
MUTANTS: tuple[Mutant, ...] = tuple(mutant for room in ROOMS for mutant in room.MUTANTS)
assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
