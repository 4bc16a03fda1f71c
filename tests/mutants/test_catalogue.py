"""The catalogue keeps up with the code, and a verdict is what it says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mutants.__main__ import run
from mutants.catalogue import MUTANTS
from mutants.mutant import Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_it_has_its_place_in_the_code_and_its_tests(mutant: Mutant, root: Path) -> None:
    assert not mutant.is_stale(root / "src")
    assert mutant.old != mutant.new
    assert mutant.tests
    assert all((root / "tests" / test.split("::")[0]).is_file() for test in mutant.tests)


def test_there_are_enough_of_them() -> None:
    assert len(MUTANTS) >= 60


def outcomes() -> list[str]:
    """Of a mutant that is seen, and of three that cannot be."""
    (seen,) = (mutant for mutant in MUTANTS if mutant.name == "k2_not_halved")
    unseen = replace(seen, name="no_change", new=f"{seen.old}  # unchanged")
    gone = replace(seen, name="long_gone", old="what never was there")
    unreadable = replace(seen, name="does_not_import", new="    return (")
    return [outcome.verdict for _, outcome in run([seen, unseen, gone, unreadable], jobs=2)]


@pytest.mark.slow
def test_only_a_failing_test_kills(root: Path) -> None:
    """In a process of its own: a process has one server to fork from, and that of the tests beside
    this one may have loaded truing."""
    code = "from mutants.test_catalogue import outcomes; print(*outcomes())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root / "tests", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["killed", "SURVIVED", "STALE", "BROKEN"]
