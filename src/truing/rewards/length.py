"""How long a completion is: near a target, or simply shorter or longer.

    L = tokens, words or characters
    score = 1 − max(0, |L/L* − 1| − tolerance)     with a target L*
          + slope · L

A reward that knows nothing but length is what the length exploitation of learned rewards is
measured with: it reproduces most of their gain.
Source: Singhal et al. 2023, "A Long Way to Go: Investigating Length Correlations in RLHF"
(arXiv 2310.03716), section 5: 1 − |L/L* − 1|. The band and the slope are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from truing.rewards.base import Reward, column


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Length(Reward):
    """1 at the target and less on both sides, without a lower bound; slope · L without a target.

    Raises DataError where tokens are counted and the texts come without them.
    """

    target: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """L* > 0 in units: completions that long score best (null: none is wanted)."""
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Half the width of the band around the target that scores 1, as a share of the target: with
    200 and 0.1 it is 180 to 220. Larger is more lenient."""
    slope: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Added for every unit: below 0 a penalty that makes completions shorter, above 0 longer."""
    unit: Literal["tokens", "words", "characters"] = "tokens"
    """What is counted. tokens: the policy's own, with the stop token."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.target is None and self.slope == 0:
            raise ValueError("give a target or a slope: without either every length scores alike")
        return self

    @property
    def wants(self) -> frozenset[str]:
        return frozenset({"completion_ids"} if self.unit == "tokens" else ())

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float]:
        return [self._score(len(units)) for units in self._units(completions, columns)]

    def _units(self, completions: Sequence[str], columns: dict[str, Any]) -> Sequence[Any]:
        if self.unit == "tokens":
            return column(columns, "completion_ids", "length")
        return completions if self.unit == "characters" else [text.split() for text in completions]

    def _score(self, length: int) -> float:
        near = 0.0
        if self.target is not None:
            near = 1.0 - max(0.0, abs(length / self.target - 1.0) - self.tolerance)
        return near + self.slope * length
