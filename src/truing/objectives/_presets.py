"""Methods that are another method with other fields: one table.

A preset sets everything its paper sets, also keys of the credit rule and of sampling. Whatever a
recipe says itself wins over it. Importing this needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Preset:
    """A named setting of an objective."""

    of: str
    """The objective whose fields it sets."""
    keys: Mapping[str, Any]
    """What it sets, under the names a recipe would use."""
    summary: str
    """One line: what these fields make of it."""
    source: str
    """The paper that sets them so."""


PRESETS: Mapping[str, Preset] = {}
