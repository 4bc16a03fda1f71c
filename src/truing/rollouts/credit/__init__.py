"""Credit: from one score per completion to one advantage per token. One file per rule.

Each rule is a frozen dataclass found by the name an objective declares (`credit = "gae"`). Its
fields stand beside the objective's in a recipe.
"""

from __future__ import annotations

from truing import registry
from truing.rollouts.credit.base import Credit


def names() -> list[str]:
    """The credit rules there are."""
    return sorted(registry.names(__name__))


def find(name: str) -> type[Credit]:
    """The rule called `name`, or `module:Class`. Raises UsageError with the valid names."""
    return registry.find(__name__, name, Credit)  # type: ignore[type-abstract]
