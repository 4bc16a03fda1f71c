"""What every curation is, and what all of them count."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import ConfigDict, Field

from truing.batch import Metric
from truing.groups import GroupType, TokenGroup

KNOBS = ConfigDict(extra="forbid", use_attribute_docstrings=True)
Number = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Kept:
    """What one group of completions gives."""

    rows: list[TokenGroup]
    """None, one, or several groups of the type the rule makes."""
    compared: int
    """Completions, or pairs of them, that the scores had to tell apart."""
    ties: int
    """Those that they did not: nothing is learnt from them."""


class Curation(ABC):
    """Turns groups with scores into groups that an offline objective learns from.

    What cannot be told apart by its scores teaches nothing: it is left out and counted, never
    decided by its place.
    """

    makes: ClassVar[GroupType]
    """The type of the rows it makes."""
    draws_from_reference: ClassVar[bool] = False
    """Whether the reference answers each prompt as often as the policy does."""

    @property
    def fewest(self) -> int:
        """Completions of the policy that it needs of each prompt."""
        return 2

    @abstractmethod
    def of(self, group: TokenGroup, chance: random.Random) -> Kept:
        """What one group gives; every completion has a score."""

    def most(self, completions: int) -> int:
        """Rows that a group of so many completions gives at most."""
        return 1

    def __call__(
        self, groups: Sequence[TokenGroup], seed: int
    ) -> tuple[list[TokenGroup], dict[str, Metric]]:
        """The rows of all groups, in their order, and what was counted."""
        chance = random.Random(seed)
        kept = [self.of(group, chance) for group in groups]
        teaching = sum(bool(one.rows) for one in kept)
        compared, ties = sum(one.compared for one in kept), sum(one.ties for one in kept)
        return [row for one in kept for row in one.rows], {
            "curation/kept_fraction": _share(teaching, len(groups)),
            "curation/ties": _share(ties, compared),
        } | self.more_metrics(kept)

    def more_metrics(self, kept: Sequence[Kept]) -> dict[str, Metric]:
        """What this rule measures besides."""
        return {}


def paired(group: TokenGroup, chosen: int, rejected: int) -> TokenGroup:
    """These two completions as a pair, with the difference of their scores as its margin, and with
    the probability that a Bradley-Terry model with these scores gives the choice."""
    pair = group.completions[chosen], group.completions[rejected]
    margin = group.scores[chosen] - group.scores[rejected]
    probability = 1 / (1 + math.exp(-margin))
    return replace(
        group, completions=pair, chosen=0, rejected=1, margin=margin, probability=probability
    )


def _share(part: int, whole: int) -> Metric:
    return Metric(torch.tensor(float(part)), float(whole))
