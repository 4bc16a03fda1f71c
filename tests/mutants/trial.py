"""Tests against a copy of the sources, in a process of its own, and which of them saw something.

Processes are forked from a server that has loaded the libraries, so that a trial costs its tests
and not the import of torch. The server itself never imports truing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = ["torch", "transformers", "transformers.modeling_utils", "peft", "pydantic"]
COPIED = ("src", "tests", "pyproject.toml")
_FORKS = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What tests said of some sources."""

    verdict: str
    """passed, failed, broken (nothing could be tested) or hung."""
    by: str
    """The first test that failed, or what was wrong."""
    seconds: float


def copy_checkout(root: Path, to: Path) -> None:
    """What trials need, as it is now: edits during a run do not count."""
    to.mkdir()
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, to / name)
        else:
            shutil.copy2(root / name, to)


def attempt(checkout: Path, src: Path, tests: Sequence[str], limit: float) -> Outcome:
    """Run tests of `checkout` against the sources in `src`, at most `limit` seconds."""
    start = time.monotonic()
    _FORKS.set_forkserver_preload(LIBRARIES)
    process = _FORKS.Process(target=_in_a_fork, args=(checkout, src, list(tests)))
    process.start()
    process.join(limit)
    seconds = time.monotonic() - start
    if process.is_alive():
        process.kill()
        process.join()
        return Outcome("hung", f"no end after {limit:.0f} s", seconds)
    found = src.parent / "found.json"
    if not found.is_file():
        return Outcome("broken", f"process ended with {process.exitcode}", seconds)
    return Outcome(*json.loads(found.read_text(encoding="utf-8")), seconds)


class _First:
    """A plugin of pytest: the first thing that went wrong, and how many tests there were."""

    def __init__(self) -> None:
        self.failed = self.uncollected = ""
        self.passed = 0

    def pytest_runtest_logreport(self, report) -> None:
        self.failed = self.failed or (report.nodeid if report.failed else "")
        self.passed += report.when == "call" and report.passed

    def pytest_collectreport(self, report) -> None:
        self.uncollected = self.uncollected or (report.nodeid if report.failed else "")


def _in_a_fork(checkout: Path, src: Path, tests: Sequence[str]) -> None:
    """Pytest on the copy. Exit codes do not tell a test that failed from one that is not there."""
    home = src.parent
    log = os.open(home / "log.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["PYTHONPATH"] = str(src)
    os.chdir(checkout)
    assert "truing" not in sys.modules
    sys.path.insert(0, str(src))
    import hypothesis
    import pytest

    import truing

    seen_is_enough = [hypothesis.Phase.explicit, hypothesis.Phase.generate]  # no shrinking
    hypothesis.settings.register_profile(
        "mutants", phases=seen_is_enough, derandomize=True, database=None, deadline=None
    )
    assert Path(truing.__file__).is_relative_to(src)
    first = _First()
    quiet = ["-x", "-q", "-n", "0", "-p", "no:randomly", "-p", "no:cacheprovider"]
    quiet += ["--hypothesis-profile=mutants", "--tb=short", f"--basetemp={home / 'temporary'}"]
    quiet += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins came with the server
    code = pytest.main([*quiet, *(f"tests/{test}" for test in tests)], plugins=[first])
    modules = [m for n, m in sys.modules.items() if n.partition(".")[0] == "truing"]
    assert all(Path(m.__file__).is_relative_to(src) for m in modules if m.__file__)
    if first.failed:
        verdict = "failed", first.failed.removeprefix("tests/")
    elif code == 0 and first.passed:
        verdict = "passed", f"{first.passed} tests"
    else:
        verdict = "broken", first.uncollected or f"pytest ended with {int(code)}"
    (home / "found.json").write_text(json.dumps(verdict), encoding="utf-8")
