"""The best of a group as demonstrations: expert iteration, rejection sampling, RAFT."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from truing.groups import TokenGroup
from truing.rollouts.curation.base import KNOBS, Curation, Kept, Number


@dataclass(frozen=True, config=KNOBS)
class Best(Curation):
    """The completions of a group with the highest scores, to be imitated.

        kept = the `take` largest of { y_i : s_i ≥ threshold }

    Scores in the reward's unit. With one kept of N, the policy is led towards its own Best-of-N,
    which is also the forward part of BOND. Raises nothing of its own. Sources: Dong et al. 2023
    (arXiv 2304.06767), algorithm 1; Sessa et al. 2024 (arXiv 2407.14622), section 4.
    Departure: without a threshold, a group whose scores are all equal has no best: it is left out
    and counted as a tie. (Of several equals ahead of others, the first are kept.)
    """

    take: Annotated[int, Field(ge=1)] = 1
    """k ≥ 1: how many of each group are imitated. More is a milder selection. 1 in the paper."""
    threshold: Number | None = None
    """Completions that score less are not imitated, whatever their place. Larger keeps fewer; null:
    the best are kept however bad. With verifiable rewards it is the score of a right answer."""

    makes = "prompt-completion"

    @property
    def fewest(self) -> int:
        return 2 if self.threshold is None else 1

    def of(self, group: TokenGroup, chance: random.Random) -> Kept:
        scores = group.scores
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        if self.threshold is None and len(set(scores)) == 1:
            return Kept([], 1, 1)
        good = [i for i in order if self.threshold is None or scores[i] >= self.threshold]
        kept = tuple(group.completions[i] for i in good[: self.take])
        return Kept([replace(group, completions=kept)] if kept else [], 1, 0)
