"""Puts measured tables into docs/performance.md: `python -m bench.tables [--check]`.

The page's text is written by hand; between `<!-- table: NAME -->` and `<!-- end -->` stands what
this script makes of `bench/results/NAME.json`. A file that is not there leaves a line that says
how to make it, so no number is ever typed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import report

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "performance.md", ROOT / "bench" / "results"
PLACE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Found = Mapping[str, Any]


def ladder(result: Found) -> str:
    """What each technique is worth."""
    return f"{report.machine_line(result['machine'])}\n\n{report.worth_table(result)}"


def limits(result: Found) -> str:
    """The limits that are held."""
    return f"{report.machine_line(result['machine'])}\n\n{report.limits_table(result)}"


TABLES: Mapping[str, Callable[[Found], str]] = {"ladder": ladder, "limits": limits}
"""Work -> its table; any other is a comparison."""


def table(name: str, results: Path = RESULTS) -> str:
    """What stands on the page for one file of results."""
    file = results / f"{name}.json"
    if not file.exists():
        return f"Not measured yet: `make bench` writes `bench/results/{name}.json`.\n"
    parts = json.loads(file.read_text(encoding="utf-8"))
    made = [TABLES.get(part["work"], report.whole)(part) for part in parts]
    return "\n\n".join(made) + "\n"


def filled(page: str, results: Path = RESULTS) -> str:
    """The page with every table as the results say."""
    return PLACE.sub(lambda m: f"{m[1]}\n{table(m[2], results)}\n{m[3]}", page)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; with --check only say whether it is current."""
    arguments = sys.argv[1:] if argv is None else argv
    page = PAGE.read_text(encoding="utf-8")
    new = filled(page)
    if "--check" in arguments:
        return 0 if new == page else 1
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
