"""Pairs of a group's completions: the one with the higher score is chosen."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Literal

from pydantic.dataclasses import dataclass

from truing.groups import TokenGroup
from truing.rollouts.curation.base import KNOBS, Curation, Kept, NonNegative, paired


@dataclass(frozen=True, config=KNOBS)
class Pairs(Curation):
    """Two completions of a group, chosen by score.

        best_worst   argmax s against argmin s
        all          every (i, j) with s_i − s_j > min_gap
        random       two drawn without a look at s, then ordered by it

    Scores in the reward's unit. The margin s_chosen − s_rejected and the probability σ(margin) go
    along, for methods that read them. Raises nothing of its own. Sources: Guo et al. 2024 (arXiv
    2402.04792), algorithm 1, with two completions; best against worst of more, Dong et al. 2024
    (arXiv 2405.07863), section 3. Departure: in TRL the first of two equals is chosen; here ties
    give no pair and are counted.
    """

    selection: Literal["best_worst", "all", "random"] = "best_worst"
    """best_worst: the widest pair of each group. all: every pair of it, N (N − 1) / 2 of them, each
    computed with its prompt. random: one pair drawn at random, the mildest selection."""
    min_gap: NonNegative = 0.0
    """Scores that differ by no more than this are a tie. Larger learns from fewer, clearer pairs;
    use it where the reward is noisy. 0 in the papers."""

    makes = "preference"

    def most(self, completions: int) -> int:
        return completions * (completions - 1) // 2 if self.selection == "all" else 1

    def of(self, group: TokenGroup, chance: random.Random) -> Kept:
        scores = group.scores
        order = sorted(range(len(scores)), key=scores.__getitem__)
        if len(order) < self.fewest:
            return Kept([], 0, 0)
        if self.selection == "best_worst":
            looked_at = [(order[0], order[-1])]
        elif self.selection == "random":
            looked_at = [_ordered(scores, chance.sample(order, 2))]
        else:
            looked_at = list(combinations(order, 2))
        apart = [
            (low, high) for low, high in looked_at if scores[high] - scores[low] > self.min_gap
        ]
        rows = [paired(group, chosen=high, rejected=low) for low, high in apart]
        return Kept(rows, len(looked_at), len(looked_at) - len(apart))


def _ordered(scores: list[float], two: list[int]) -> tuple[int, int]:
    low, high = sorted(two, key=scores.__getitem__)
    return low, high
