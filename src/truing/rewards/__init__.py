"""One file per reward, found by its name: `make("vader")`. Importing this room needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from truing import registry
from truing.errors import UsageError
from truing.rewards.base import Reward


def names() -> list[str]:
    """The rewards there are."""
    return sorted(registry.names(__name__))


def find(name: str) -> type[Reward]:
    """The reward called `name`, or `module:Class`. Raises UsageError with suggestions."""
    return registry.find(__name__, name, Reward)  # type: ignore[type-abstract]


def make(spec: str | Mapping[str, Any]) -> Reward:
    """A reward from its name, or from {name: ..., its fields}. Raises UsageError."""
    fields = {"name": spec} if isinstance(spec, str) else dict(spec)
    if "name" not in fields:
        raise UsageError("a reward needs a name", remedy="write {name: vader}")
    kind = find(str(fields.pop("name")))
    try:
        return TypeAdapter(kind).validate_python(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise UsageError(
            f"{kind.__name__}.{place}: {problem['msg']}", remedy="correct the reward's fields"
        ) from error
