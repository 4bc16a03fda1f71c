"""Curation: from scored completions to rows an offline objective learns from. One file per rule.

Each rule is a frozen dataclass. What an objective learns from decides which one is used; the key
`curation` names another. Its fields stand beside the objective's in a recipe.
"""

from __future__ import annotations

from collections.abc import Iterable

from truing import registry
from truing.groups import GroupType
from truing.rollouts.curation.base import Curation

USUAL: dict[GroupType, str] = {
    "preference": "pairs",
    "unpaired": "verdicts",
    "scored": "scored",
    "prompt-completion": "best",
}
"""Rows of a type -> the rule that makes them, unless another is named."""


def names() -> list[str]:
    """The rules there are."""
    return sorted(registry.names(__name__))


def find(name: str) -> type[Curation]:
    """The rule called `name`, or `module:Class`. Raises UsageError with the valid names."""
    return registry.find(__name__, name, Curation)  # type: ignore[type-abstract]


def usual(kinds: Iterable[GroupType]) -> str:
    """The rule that makes the first of these types of rows."""
    return USUAL[next(iter(kinds))]
