"""Rewards made of rewards: how their parts are read and asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import PlainValidator, ValidationInfo

from truing.rewards.base import Patience, Reward


def _reward(given: Any, info: ValidationInfo) -> Reward:
    """A part from its name, its fields or itself."""
    if isinstance(given, Reward):
        return given
    if info.context is None:  # made in Python, without a run around it
        from truing.rewards import make

        return make(given)
    made: Reward = info.context["make"](given)
    return made


Part = Annotated[Reward, PlainValidator(_reward)]


@dataclass(slots=True)
class Judged:
    """What all parts said of the same completions."""

    columns: list[list[float | None]] = field(default_factory=list)
    """One list per part, in order."""
    named: dict[str, list[float | None]] = field(default_factory=dict)
    """The same by name, with the parts of parts as outer/inner."""
    reasons: list[str | None] = field(default_factory=list)
    """Of each completion: the first part that could not judge it, and why."""


def judge_parts(
    parts: Mapping[str, Reward],
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    patience: Patience,
) -> Judged:
    """Every part asked once, with the same patience. Raises RolloutError if one fails."""
    judged = Judged(reasons=[None] * len(completions))
    for name, part in parts.items():
        scores = part.judge(prompts, completions, columns, patience)
        judged.columns.append(scores.values)
        judged.named[name] = scores.values
        judged.named |= {f"{name}/{inner}": values for inner, values in scores.parts.items()}
        for index, reason in enumerate(scores.reasons):
            if reason is not None and judged.reasons[index] is None:
                judged.reasons[index] = f"{name}/{reason}"
    return judged


def wanted(parts: Mapping[str, Reward]) -> frozenset[str]:
    """What any of them wants from the sampler."""
    return frozenset().union(*(part.wants for part in parts.values()))
