"""One file per objective, found by its name: `find("dpo")`. Importing this room needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from truing import registry

if TYPE_CHECKING:
    from truing.objectives.base import Objective


def names() -> list[str]:
    """The objectives there are."""
    return sorted(registry.names(__name__))


def find(name: str) -> type[Objective]:
    """The objective called `name`, or `module:Class`. Raises UsageError with suggestions."""
    from truing.objectives.base import Objective

    return registry.find(__name__, name, Objective)  # type: ignore[type-abstract]
