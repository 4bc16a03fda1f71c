"""Whole groups with their scores, for objectives that learn from lists."""

from __future__ import annotations

import random

from pydantic.dataclasses import dataclass

from truing.groups import TokenGroup
from truing.rollouts.curation.base import KNOBS, Curation, Kept


@dataclass(frozen=True, config=KNOBS)
class Scored(Curation):
    """Every completion of a group with its score (InfoNCA, NCA, EXO).

    Scores in the reward's unit. Raises nothing of its own. Source: Chen et al. 2024 (arXiv
    2402.05369), section 3.
    Departure: a group whose scores are all equal ranks nothing: it is left out and counted as a
    tie.
    """

    makes = "scored"

    def of(self, group: TokenGroup, chance: random.Random) -> Kept:
        if len(group.completions) < self.fewest:
            return Kept([], 0, 0)
        tied = len(set(group.scores)) == 1
        return Kept([] if tied else [group], 1, int(tied))
