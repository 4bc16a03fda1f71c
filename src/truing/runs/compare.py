"""Two runs side by side: what they were given, and what came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from truing.rundir import RunDirectory
from truing.runs.listing import Run

Row = tuple[str, str, str]
"""Name, and how it is in one run and in the other."""
ABSENT = "-"


def differing_config(one: Run, other: Run) -> list[Row]:
    """The keys that differ."""
    return _differing(
        _flat(RunDirectory(one.path).config()), _flat(RunDirectory(other.path).config())
    )


def differing_inputs(one: Run, other: Run) -> list[str]:
    """The parts of what the results depend on that differ, config aside."""
    sides = [{} if run.info is None else run.info.inputs for run in (one, other)]
    names = {**sides[0], **sides[1]}
    return [n for n in names if n != "config" and sides[0].get(n) != sides[1].get(n)]


def last_metrics(path: Path) -> dict[str, float]:
    """The last value of every metric of a run."""
    last: dict[str, float] = {}
    for line in RunDirectory(path).metrics():
        last |= line
    return last


def metrics_side_by_side(one: Run, other: Run) -> list[Row]:
    """The last value of every metric that either has, clocks left out."""
    sides = [last_metrics(run.path) for run in (one, other)]
    names = [n for n in {**sides[0], **sides[1]} if not n.startswith("timing/")]
    return [(n, _number(sides[0].get(n)), _number(sides[1].get(n))) for n in names]


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Row]:
    names = [n for n in {**one, **other} if one.get(n, ABSENT) != other.get(n, ABSENT)]
    return [(n, str(one.get(n, ABSENT)), str(other.get(n, ABSENT))) for n in names]


def _flat(config: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    return dict(_leaves(config, start))


def _leaves(config: Mapping[str, Any], start: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", value


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.6g}"
