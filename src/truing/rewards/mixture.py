"""A weighted sum of rewards, each with its name, its weight and its own curve.

    score = Σ_p weight_p · score_p

A completion that one part cannot judge is unscored, reason part/why: with the sum of the others it
would be compared with completions that were judged by more (TRL leaves the part out instead).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, FiniteFloat, model_validator
from pydantic.dataclasses import dataclass

from truing.rewards._parts import Part, judge_parts, wanted
from truing.rewards.base import Patience, Reward, Scores, Unscored


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Mixture(Reward):
    """The sum; each part's own number is logged as rewards/PART. Unit: that of the parts.

    Raises what its parts raise.
    """

    parts: Annotated[dict[str, Part], Field(min_length=1)]
    """Name -> reward: a name, {name: ..., its fields}, a function, a reward model."""
    weights: dict[str, FiniteFloat] = field(default_factory=dict)
    """Name -> weight; a part without one has 1. Larger makes the part count more, below 0 it is a
    penalty. It multiplies scores as they are: parts in other units need other weights."""

    @model_validator(mode="after")
    def _weighs_its_parts(self) -> Self:
        if unknown := sorted(set(self.weights) - set(self.parts)):
            raise ValueError(f"there is a weight for '{unknown[0]}', and no such part")
        return self

    @property
    def wants(self) -> frozenset[str]:
        return wanted(self.parts)

    def judge(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
        patience: Patience,
    ) -> Scores:
        judged = judge_parts(self.parts, prompts, completions, columns, patience)
        weights = [self.weights.get(name, 1.0) for name in self.parts]
        values = [
            sum(w * x for w, x in zip(weights, scores, strict=True) if x is not None)
            if reason is None
            else None
            for *scores, reason in zip(*judged.columns, judged.reasons, strict=True)
        ]
        return Scores.of(values, judged.reasons, judged.named)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | Unscored | None]:
        return list(self.judge(prompts, completions, columns, Patience()).values)
