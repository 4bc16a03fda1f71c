"""Pairs of a policy's and a reference's completion of the same prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from pydantic.dataclasses import dataclass

from truing.batch import Metric
from truing.groups import TokenGroup
from truing.rollouts.curation.base import KNOBS, Curation, Kept, NonNegative, paired


@dataclass(frozen=True, config=KNOBS)
class AgainstReference(Curation):
    """The policy's i-th completion against the reference's i-th; the higher score is chosen.

    Scores in the reward's unit. Raises nothing of its own. Source: Xie et al. 2024 (arXiv
    2405.21046), algorithm 1 with the reference as the sampling policy. Departure: a tie gives no
    pair and is counted.
    """

    min_gap: NonNegative = 0.0
    """Scores that differ by no more than this are a tie. Larger learns from fewer, clearer pairs.
    0 in the paper."""

    makes = "preference"
    draws_from_reference = True

    @property
    def fewest(self) -> int:
        return 1

    def most(self, completions: int) -> int:
        return completions

    def of(self, group: TokenGroup, chance: random.Random) -> Kept:
        drawn = list(enumerate(group.completions))
        own = [i for i, completion in drawn if not completion.of_reference]
        theirs = [i for i, completion in drawn if completion.of_reference]
        duels = list(zip(own, theirs, strict=False))  # one that has no score leaves its rival over
        rows = []
        for mine, other in duels:
            lead = group.scores[mine] - group.scores[other]
            if abs(lead) > self.min_gap:
                winner, loser = (mine, other) if lead > 0 else (other, mine)
                rows.append(paired(group, winner, loser))
        return Kept(rows, len(duels), len(duels) - len(rows))

    def more_metrics(self, kept: Sequence[Kept]) -> dict[str, Metric]:
        """How often the policy won, of the pairs that were decided."""
        winners = [row.completions[0] for one in kept for row in one.rows]
        won = sum(not winner.of_reference for winner in winners)
        return {"curation/wins": Metric(torch.tensor(float(won)), float(len(winners)))}
