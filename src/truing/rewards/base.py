"""What a reward is: texts in, one number per completion out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from truing.errors import RolloutError


class Reward(ABC):
    """A frozen dataclass, called as TRL calls its reward functions.

    `prompts` and `completions` have equal length; further columns of the rows come by name.
    Returns one finite number per completion, larger is better.
    """

    @abstractmethod
    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float]:
        """Score every completion."""


def score(
    reward: Reward,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]] = MappingProxyType({}),
) -> list[float]:
    """The reward's numbers, checked: as many as completions and all finite.

    Raises RolloutError otherwise: a failed reward is never a zero.
    """
    name = type(reward).__name__
    scores = reward(prompts, completions, **columns)
    if len(scores) != len(completions):
        raise RolloutError(
            f"{len(scores)} scores for {len(completions)} completions",
            where=name,
            remedy="a reward returns one number per completion",
        )
    for index, value in enumerate(scores):
        if not math.isfinite(value):
            raise RolloutError(
                f"the score of completion {index} is {value}",
                where=name,
                remedy="make the reward return a finite number, or raise",
            )
    return [float(value) for value in scores]
