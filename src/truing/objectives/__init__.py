"""One file per objective, found by its name: `find("dpo")`. Importing this room needs no torch.

Folders only group the files. Named settings of a class (`dr_grpo` is `grpo` with other fields)
are in `_presets.py`, one table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from truing import registry
from truing.objectives._presets import PRESETS, Preset

if TYPE_CHECKING:
    from truing.objectives.base import Objective


def names() -> list[str]:
    """The objectives there are, one per file."""
    return sorted(registry.names(__name__))


def presets() -> dict[str, Preset]:
    """Name -> preset, for methods that are another one with other fields."""
    return dict(PRESETS)


def methods() -> list[str]:
    """Everything `method:` accepts: objectives and presets (and `module:Class`)."""
    return sorted([*names(), *PRESETS])


def draws(name: str) -> bool:
    """Whether a method always learns from completions the policy draws; others do when they are
    given a reward. Raises UsageError."""
    kind = find(name)
    preset = PRESETS.get(name)
    curated = kind.curation is not None or (preset is not None and "curation" in preset.keys)
    return kind.credit is not None or curated


def find(name: str) -> type[Objective]:
    """The objective called `name`, a preset's, or `module:Class`. Raises UsageError."""
    from truing.objectives.base import Objective

    plain = PRESETS[name].of if name in PRESETS else name
    return registry.find(__name__, plain, Objective)  # type: ignore[type-abstract]
