"""Everything that can go wrong, with what a shell sees and what a person should do.

    TruingError                exit code
    ├── UsageError             2   a command or recipe that cannot be read, a taken run directory
    ├── DataError              3   rows, formats, prompts, annotators' files
    ├── ModelError             4   weights, tokenizers, templates
    │   └── UnsafeFileError    4   a file that would have to be executed to be read
    ├── NumericsError          5   non-finite numbers, a broken step-0 contract
    ├── ResourceError          6   memory, disk
    ├── RolloutError           7   sampling, rewards, a peer that does not answer
    └── CheckpointError        8   a run directory that cannot be continued

130 and 143 are SIGINT and SIGTERM. A message says what happened, where, and what to do about it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable


class TruingError(Exception):
    """An error a user can act on: `what` happened, `where`, and the `remedy`."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(what, where, remedy)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  what to do: {self.remedy}" if self.remedy else head


class UsageError(TruingError):
    """A command, a recipe or an output folder that cannot be used as asked."""

    exit_code = 2


class DataError(TruingError):
    """Rows that cannot become groups, or groups that cannot become batches."""

    exit_code = 3


class ModelError(TruingError):
    """Weights, a tokenizer or a template that cannot be used."""

    exit_code = 4


class UnsafeFileError(ModelError):
    """A file that can only be read by executing what is in it (pickle, remote code)."""


class NumericsError(TruingError):
    """A number that is not one, or a step-0 contract that does not hold."""

    exit_code = 5


class ResourceError(TruingError):
    """The machine ran out of something."""

    exit_code = 6


class RolloutError(TruingError):
    """Sampling or scoring failed. A failed reward is never a zero."""

    exit_code = 7


class CheckpointError(TruingError):
    """A run directory whose content does not allow what was asked."""

    exit_code = 8


MANY = 40
"""More names than this are not printed in a message."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """A remedy for a misspelt name: the nearest valid ones first, then all if they are few."""
    options = sorted(valid)
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    few = len(options) <= MANY
    listed = ", ".join(options) if few else f"`truing explain` lists all {len(options)}"
    if not near:
        return f"use one of: {listed}"
    others = f" (or {', '.join(near[1:])})" if near[1:] else ""
    return f"did you mean '{near[0]}'{others}? (valid: {listed})"


SECRET = re.compile(r"token|key|secret|passw|credential", re.IGNORECASE)
SHORTEST_SECRET = 8
"""Characters. A shorter value is a word that may stand anywhere."""


def redacted(text: str) -> str:
    """`text` without the values of environment variables that are named like secrets."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text
