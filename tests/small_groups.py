"""Small random groups of byte tokens for tests of every room."""

from __future__ import annotations

import random

from truing.groups import TokenCompletion, TokenGroup
from truing.rewards.base import Scores

STOP = 2
"""Stop token of the byte tokenizer."""


def scorer(score):
    """A rollout's scorer from a function of one completion and its group."""
    return lambda groups: Scores([score(c, g) for g in groups for c in g.completions])


def random_groups(
    seed: int, groups: int, completions: int, longest: int = 9, pairs: bool = False
) -> list[TokenGroup]:
    """Groups of random byte tokens; every completion ends with the stop token."""
    draw = random.Random(seed)

    def ids(low: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 259) for _ in range(draw.randint(low, longest)))

    return [
        TokenGroup(
            ids(1),
            tuple(TokenCompletion((*ids(0), STOP)) for _ in range(completions)),
            chosen=0 if pairs else None,
            rejected=1 if pairs else None,
        )
        for _ in range(groups)
    ]
