"""What a mixture is made of: one method, its weight, its fields. Read, checked and built here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from truing import objectives
from truing.batch import Batch, Loss, Outputs
from truing.errors import UsageError
from truing.objectives._demonstrations import demonstrations, only, only_outputs
from truing.objectives.base import Objective

JUDGED = frozenset({"chosen_G", "label_C", "scores_C", "step_label_S"})
"""Columns that say how good a completion is. A part that needs none of them imitates."""


@dataclass(frozen=True, slots=True)
class Part:
    """One objective of a mixture."""

    method: str
    weight: float
    objective: Objective

    @property
    def imitates(self) -> bool:
        """Whether it takes every completion for a demonstration (SFT and its like)."""
        return not self.objective.needs & JUDGED

    def learns(self, batch: Batch, needs: frozenset[str]) -> Batch:
        """What it sees of a batch of a mixture that needs these columns."""
        return only(batch, demonstrations(batch, needs)) if self.imitates else batch

    def weigh(self, batch: Batch, needs: frozenset[str]) -> float:
        """Its own units in a batch of the mixture."""
        return self.objective.weigh(self.learns(batch, needs))

    def judge(self, batch: Batch, outputs: Outputs, needs: frozenset[str]) -> Loss:
        """Its own loss on a batch of the mixture."""
        if self.imitates:
            outputs = only_outputs(outputs, batch, demonstrations(batch, needs))
        return self.objective(self.learns(batch, needs), outputs)


class Keys(BaseModel, extra="allow"):
    """The keys of a part that are not the method's own fields."""

    method: str
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


def build(raw: Mapping[str, Any]) -> Part:
    """A part from its keys. Raises ValueError that names the method and the key."""
    name = raw.get("method")
    try:
        keys = Keys.model_validate(raw)
        kind = objectives.find(keys.method)
        preset = objectives.presets().get(keys.method)
        own = {field.name for field in fields(kind)}  # type: ignore[arg-type]
        settings = {k: v for k, v in (preset.keys if preset else {}).items() if k in own}
        settings |= keys.model_extra or {}
        return Part(keys.method, keys.weight, TypeAdapter(kind).validate_python(settings))
    except UsageError as error:
        raise ValueError(f"{error.what}; {error.remedy}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise ValueError(f"part {name}, '{key}': {problem['msg']}") from error


def refuse_unfit(parts: Sequence[Part]) -> None:
    """Raises ValueError for parts that cannot be summed into one loss."""
    names = [part.method for part in parts]
    for part in parts:
        if part.objective.credit is not None:
            raise ValueError(f"{part.method} learns from its own samples: it cannot be a part")
        if part.objective.moves_reference:
            raise ValueError(f"{part.method} moves the reference of every part: train it alone")
        if "part_weights" in part.objective.prepared:
            raise ValueError(f"{part.method} is a mixture itself: list its parts here")
        if names.count(part.method) > 1:
            raise ValueError(f"{part.method} is there twice: its metrics would share their names")
    trained = {part.method: part.objective.trains for part in parts}
    if len(set(trained.values())) > 1:
        said = ", ".join(f"{name} trains the {what}" for name, what in trained.items())
        raise ValueError(f"parts must train the same thing: {said}")
    prepared = [column for part in parts for column in part.objective.prepared]
    twice = {column for column in prepared if prepared.count(column) > 1}
    if twice:
        raise ValueError(f"two of {', '.join(names)} prepare {', '.join(sorted(twice))}")
    lends = [part.method for part in parts if "mismatched_C" in part.objective.needs]
    learns = [p.method for p in parts if "label_C" in p.objective.needs and p.method not in lends]
    if lends and learns:
        raise ValueError(f"{learns[0]} would learn the answers lent to {lends[0]}: train it alone")
    judged = union_of(parts, "needs") & JUDGED
    if any(part.imitates for part in parts) and judged == {"scores_C"}:
        raise ValueError(f"{', '.join(names)}: scores do not say which completions to imitate")


def union_of(parts: Sequence[Part], declared: str) -> frozenset[str]:
    """All the columns (or outputs) that the parts declare under this name."""
    return frozenset().union(*(getattr(part.objective, declared) for part in parts))
