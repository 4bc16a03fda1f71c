"""Puts stored results into docs/experiments.md: `python -m experiments.tables [--check]`.

The page's text is written by hand; between `<!-- table: NAME.SIZE -->` and `<!-- end -->` stands
what this script makes of `experiments/results/NAME.SIZE.json`, so no number is ever typed. Pictures
go to `docs/experiments/`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from experiments._common import RESULTS
from truing.rundir import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURES = ROOT / "docs" / "experiments.md", ROOT / "docs" / "experiments"
PLACE = re.compile(r"(<!-- table: (\w+)\.(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(name: str, size: str, results: Path = RESULTS) -> str:
    """What stands on the page for one file of results."""
    command = f"python -m experiments.{name}" + (f" --size {size}" if size != "tiny" else "")
    file = results / f"{name}.{size}.json"
    if not file.exists():
        return f"Not run yet: `{command}` writes `experiments/results/{file.name}`.\n"
    found = json.loads(file.read_text(encoding="utf-8"))
    machine = found["machine"]
    said = (
        f"`{command}`: {found['seeds']} seeds, {found['seconds']:.0f} s on {machine['cpu']}, "
        f"{machine['date']}, torch {machine['packages']['torch']}, commit {machine['commit']}. "
    )
    experiment = import_module(f"experiments.{name}")
    said += getattr(experiment, "CAPTION", "Mean ± standard error over seeds.")
    shown = [experiment.table(found["found"]), said]
    if (PICTURES / f"{name}.svg").exists():
        shown.insert(1, f"![{name}](experiments/{name}.svg)")
    return "\n\n".join(shown) + "\n"


def draw(results: Path = RESULTS) -> dict[str, str]:
    """Name -> picture, of every experiment that has results and draws them."""
    found = {}
    for file in sorted(results.glob("*.tiny.json")):
        name = file.name.partition(".")[0]
        picture = getattr(import_module(f"experiments.{name}"), "picture", None)
        if picture is not None:
            found[name] = picture(json.loads(file.read_text(encoding="utf-8"))["found"])
    return found


def filled(page: str, results: Path = RESULTS) -> str:
    """The page with every table as the results say."""
    return PLACE.sub(lambda m: f"{m[1]}\n{table(m[2], m[3], results)}\n{m[4]}", page)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; with --check only say whether it is current."""
    arguments = sys.argv[1:] if argv is None else argv
    page = PAGE.read_text(encoding="utf-8")
    if "--check" in arguments:
        return 0 if filled(page) == page else 1
    for name, picture in draw().items():
        write_text(PICTURES / f"{name}.svg", picture)
    write_text(PAGE, filled(page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
