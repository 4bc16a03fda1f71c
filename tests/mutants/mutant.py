"""A planted bug: what is changed where, and which tests are to see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mutant:
    """One bug of the field in our code."""

    name: str
    file: str
    """Below src/truing."""
    old: str
    """Must be there exactly once; otherwise the mutant is stale."""
    new: str
    tests: tuple[str, ...]
    """Below tests: files, or ids."""
    story: str
    """Whose bug it was."""

    def is_stale(self, src: Path) -> bool:
        """Whether the code has moved on and the bug has no place any more."""
        path = src / "truing" / self.file
        return not path.is_file() or path.read_text(encoding="utf-8").count(self.old) != 1

    def plant(self, src: Path) -> None:
        """Write the bug into a copy of the sources."""
        path = src / "truing" / self.file
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")
