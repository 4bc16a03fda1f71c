"""How much a completion repeats itself: the share of its n-grams that it has said before.

    score = −(1 − #different n-grams / #n-grams)

Source: Welleck et al. 2019, "Neural Text Generation with Unlikelihood Training" (arXiv 1908.04319),
section 6.1, seq-rep-n, with the sign of a reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from truing.rewards.base import Reward, column


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Repetition(Reward):
    """Range (−1, 0]; 0 if no n-gram occurs twice, or there is none.

    Raises DataError where tokens are counted and the texts come without them.
    """

    n: Annotated[int, Field(ge=1)] = 4
    """Units in an n-gram (the paper's is 4). Larger forgives more: only longer repeats count."""
    unit: Literal["tokens", "words", "characters"] = "words"
    """What an n-gram is made of. words: between spaces, capitals as small letters."""

    @property
    def wants(self) -> frozenset[str]:
        return frozenset({"completion_ids"} if self.unit == "tokens" else ())

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float]:
        units: Sequence[Sequence[Any]] = completions
        if self.unit == "tokens":
            units = column(columns, "completion_ids", "repetition")
        elif self.unit == "words":
            units = [text.lower().split() for text in completions]
        return [self._score(one) for one in units]

    def _score(self, units: Sequence[Any]) -> float:
        grams = [tuple(units[i : i + self.n]) for i in range(len(units) - self.n + 1)]
        return len(set(grams)) / len(grams) - 1.0 if grams else 0.0
