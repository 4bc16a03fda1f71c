"""Would the suite see it? Plants known bugs one at a time, in copies, and counts what is caught.

    python -m tests.mutants [--jobs 2] [name ...]

A mutant is killed by a test that fails, and by nothing else: one that does not even import, or
never ends, shows nothing about the tests. Exit code 0 only if every one is killed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .catalogue import MUTANTS
from .mutant import Mutant
from .trial import Outcome, attempt, copy_checkout

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 120.0
WHOLE_LIMIT = 600.0
VERDICTS = {"failed": "killed", "passed": "SURVIVED", "broken": "BROKEN", "hung": "HUNG"}


def run(mutants: Sequence[Mutant], jobs: int) -> list[tuple[Mutant, Outcome]]:
    """Every mutant with what became of it, in order; raises SystemExit if healthy code fails."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        work = Path(folder)
        checkout = work / "checkout"
        copy_checkout(ROOT, checkout)
        with ThreadPoolExecutor(jobs) as pool:
            shares = _shares([test for mutant in mutants for test in mutant.tests], jobs)
            places = [_place(checkout, work / f"healthy-{i}") for i in range(len(shares))]
            baseline = pool.map(
                lambda p, tests: attempt(checkout, p, tests, WHOLE_LIMIT), places, shares
            )
            for place, outcome in zip(places, baseline, strict=True):
                print(f"healthy code: {outcome.verdict}, {outcome.by}, {outcome.seconds:.1f} s")
                if outcome.verdict != "passed":
                    raise SystemExit(f"{_log(place)}\nthe tests fail without any mutant")
            return list(pool.map(lambda m: (m, _try(m, checkout, work)), mutants))


def _shares(tests: Sequence[str], jobs: int) -> list[list[str]]:
    """The tests, each once, dealt to the jobs; a whole file stands for its single tests."""
    files = {test for test in tests if "::" not in test}
    needed = sorted(
        {test for test in tests if "::" not in test or test.split("::")[0] not in files}
    )
    return [share for i in range(jobs) if (share := needed[i::jobs])]


def _place(checkout: Path, home: Path) -> Path:
    shutil.copytree(checkout / "src", home / "src")
    return home / "src"


def _try(mutant: Mutant, checkout: Path, work: Path) -> Outcome:
    if mutant.is_stale(checkout / "src"):
        return _told(mutant, Outcome("STALE", "its place is not in the file exactly once", 0.0))
    src = _place(checkout, work / mutant.name)
    mutant.plant(src)
    outcome = attempt(checkout, src, mutant.tests, LIMIT)
    if outcome.verdict != "failed":
        print(_log(src), file=sys.stderr)
    shutil.rmtree(src.parent)
    return _told(mutant, Outcome(VERDICTS[outcome.verdict], outcome.by, outcome.seconds))


def _log(src: Path) -> str:
    """The end of what pytest printed."""
    return (src.parent / "log.txt").read_text(encoding="utf-8")[-2000:]


def _told(mutant: Mutant, outcome: Outcome) -> Outcome:
    where = f"{mutant.name:36} {mutant.file:40}"
    print(f"{where} {outcome.verdict:9} {outcome.seconds:5.1f} s  {outcome.by}", flush=True)
    return outcome


def main() -> int:
    """The table, then killed/planted."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("names", nargs="*", help="mutants to plant; all if none is named")
    asked = parser.parse_args()
    unknown = set(asked.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"no mutant is called {', '.join(sorted(unknown))}")
    mutants = [m for m in MUTANTS if not asked.names or m.name in asked.names]
    outcomes = run(mutants, asked.jobs)
    killed = sum(outcome.verdict == "killed" for _, outcome in outcomes)
    print(f"{killed}/{len(mutants)} killed")
    return 0 if killed == len(mutants) else 1


if __name__ == "__main__":
    raise SystemExit(main())
