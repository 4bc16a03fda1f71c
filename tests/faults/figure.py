"""Counts faults, and what became of them: `faults N, lost 0, silent 0, hung 0, leaked 0`.

A test says which cells of the matrix it is for: `@pytest.mark.fault("P1")` with a parameter
`stage`, or `@pytest.mark.fault("W6", "grpo", "best_of_n")`. `@pytest.mark.full` leaves a test to
`make faults`. A plugin of all tests (tests/conftest.py), so that it counts with several workers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from faults.matrix import MATRIX, cells

FULL = os.environ.get("FAULTS") == "full"
VERDICTS = {
    "LostError": "lost",
    "HungError": "hung",
    "LeakedError": "leaked",
    "DidNotFireError": "not fired",
}
"""Whatever else goes wrong in a test of a fault counts as silent: the worst."""


def cells_of(item: pytest.Item) -> list[tuple[str, str]]:
    """The cells of the matrix that a test is for."""
    found = []
    for mark in item.iter_markers("fault"):
        kind, *stages = mark.args
        found += [(kind, stage) for stage in stages or [item.callspec.params["stage"]]]
    return found


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for cell in cells_of(item):
            if cell not in cells():
                raise pytest.UsageError(f"{item.nodeid}: {cell} is no cell of the matrix")
            item.user_properties.append(("fault", "/".join(cell)))
    left = [] if FULL else [item for item in items if item.get_closest_marker("full")]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if report.failed and call.excinfo is not None:
        verdict = VERDICTS.get(call.excinfo.type.__name__, "silent")
        report.user_properties.append(("verdict", verdict))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figure, and with FAULTS_JSON every cell."""
    counts = dict.fromkeys(["lost", "silent", "hung", "leaked", "not fired"], 0)
    seen: dict[str, list[str]] = {}
    number = 0
    for report in [
        r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])
    ]:
        told: dict[str, list[str]] = {}
        for name, value in report.user_properties:
            told.setdefault(name, []).append(value)
        if "fault" not in told or (report.passed and report.when != "call"):
            continue
        number += 1
        verdict = told.get("verdict", ["as specified"])[0]
        counts |= {verdict: counts[verdict] + 1} if verdict in counts else {}
        for cell in told["fault"]:
            seen.setdefault(cell, []).append(verdict)
    if not number:
        return
    line = f"faults {number}, " + ", ".join(f"{kind} {n}" for kind, n in counts.items())
    terminalreporter.section("faults")
    terminalreporter.write_line(f"{line}; {len(seen)} of {len(cells())} cells of the matrix")
    if place := os.environ.get("FAULTS_JSON"):
        titles = {kind: title for kind, (title, _) in MATRIX.items()}
        Path(place).write_text(
            json.dumps({"line": line, "titles": titles, "cells": seen}, indent=1)
        )
