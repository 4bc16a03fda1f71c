"""A verdict on each completion: better or worse than a threshold, or than its group."""

from __future__ import annotations

import random
from dataclasses import replace

from pydantic.dataclasses import dataclass

from truing.groups import TokenGroup
from truing.rollouts.curation.base import KNOBS, Curation, Kept, Number


@dataclass(frozen=True, config=KNOBS)
class Verdicts(Curation):
    """Every completion of a group with a label, for unpaired objectives (KTO, BCO).

        label_i = s_i > threshold,  without a threshold s_i > mean of the group

    Scores in the reward's unit. Raises nothing of its own. Source: Ethayarajh et al. 2024
    (arXiv 2402.01306), section 4.2, on data that are judged one by one. Departure: what scores
    exactly the threshold is neither good nor bad: it is left out and counted as a tie.
    """

    threshold: Number | None = None
    """What a desirable completion must exceed. Larger calls fewer desirable; null: the mean of its
    group, so that every prompt has both, unless its completions are equal."""

    makes = "unpaired"

    @property
    def fewest(self) -> int:
        return 2 if self.threshold is None else 1

    def of(self, group: TokenGroup, chance: random.Random) -> Kept:
        scores = group.scores
        if self.threshold is not None:
            bar = self.threshold
        elif len(set(scores)) == 1:
            bar = scores[0]  # the mean of equals, without rounding
        else:
            bar = sum(scores) / len(scores)
        judged = tuple(
            replace(completion, label=score > bar)
            for completion, score in zip(group.completions, scores, strict=True)
            if score != bar
        )
        rows = [replace(group, completions=judged)] if judged else []
        return Kept(rows, len(scores), len(scores) - len(judged))
