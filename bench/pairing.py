"""Two sides in turn: workers, the check that both compute the same, and A B A B ... in rounds."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.job import Job, Setting
from bench.rounds import Comparison, Run
from truing.errors import TruingError

ROOT = Path(__file__).resolve().parents[1]
REST = 0.3
"""Seconds between turns: threads that wait for more work by spinning have gone to sleep by then."""
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05, "autocast": 0.05}
"""How far loss and gradient norm may be apart, relative: of the same precision in float32, and of
two ways of rounding to 8 bits."""
ABSOLUTE = 1e-4
"""The same for losses that are 0 by construction (a rollout's first step)."""

Say = Callable[[str], None]


class Worker:
    """A side in a process of its own; asleep unless it is asked something."""

    def __init__(self, job: Job, setting: Setting, rollout: Any = None) -> None:
        self.setting = setting
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False)  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=_environment(),
        )
        self.loaded = self.ask({"job": job.dump(), "setting": _plain(setting), "rollout": rollout})

    def ask(self, question: Any) -> dict[str, Any]:
        """The worker's answer. Raises BenchError with the end of its log if it died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it is dead: the empty answer below says so, with its log
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            log = Path(self._log.name).read_text(encoding="utf-8").splitlines()
            raise BenchError(
                f"{self.setting.label} ended with code {self._process.returncode}",
                remedy="the end of its log:\n  " + "\n  ".join(log[-15:]),
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def warm(self) -> dict[str, Any]:
        """The untimed first step, from the weights as they were loaded."""
        return self.ask("warm")

    def run(self) -> Run:
        """One timed run."""
        time.sleep(REST)
        answer = self.ask("run")
        return Run(answer["seconds"], answer["units"], answer["tokens"], answer["peak"])

    def close(self) -> None:
        """End the process: it leaves when its pipe is closed."""
        self._process.communicate()
        self._log.close()
        Path(self._log.name).unlink()


class BenchError(TruingError):
    """A comparison that cannot, or must not, be made."""


def _plain(setting: Setting) -> dict[str, Any]:
    return {name: getattr(setting, name) for name in Setting.__slots__}


def _environment() -> dict[str, str]:
    """No hub, no bars, no chatter; the same threads for both sides."""
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
    paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@contextmanager
def worker(job: Job, setting: Setting, rollout: Any = None) -> Iterator[Worker]:
    """A worker that is gone afterwards, whatever happened."""
    started = Worker(job, setting, rollout)
    try:
        yield started
    finally:
        started.close()


def first_numbers(job: Job, precision: str) -> dict[str, Any]:
    """What our side computes on the first batch, and the ids it sees."""
    with worker(job, Setting("ours", precision)) as ours:
        return {"ids": ours.loaded["ids"], **ours.warm()}


def refuse_disagreement(
    job: Job, ours: dict[str, Any], theirs: dict[str, Any], precision: str
) -> dict[str, list[float]]:
    """What was compared, as name -> [ours, theirs].

    Raises BenchError unless both saw the same ids and computed the same loss and gradient.
    """
    for row, (mine, other) in enumerate(zip(ours["ids"], theirs["ids"], strict=True)):
        if _in_form_of(other, mine, job.work) != other:
            raise BenchError(
                f"row {row} has other token ids on the two sides", remedy="compare Row.texts"
            )
    if job.work == "sample":
        if precision == "float32" and ours["greedy"] != theirs["greedy"]:
            raise BenchError("greedy tokens differ in float32", remedy="look at models/attention")
        return {}
    names = ("loss", "grad_norm")
    found = {name: [ours["metrics"][name], theirs["metrics"][name]] for name in names}
    for name, (mine, other) in found.items():
        if not close(mine, other, TOLERANCE[precision]):
            raise BenchError(
                f"{name} of the first batch is {mine:.6g} here and {other:.6g} there ({precision})",
                remedy="the sides do not do the same work: nothing was timed",
            )
    if not found["grad_norm"][0] > 0:
        raise BenchError(
            "the first step has no gradient on either side, so nothing was compared",
            remedy="use other rows, or another --seed",
        )
    return found


def close(mine: float, other: float, tolerance: float) -> bool:
    """Whether two numbers agree; never for NaN."""
    return abs(mine - other) <= tolerance * max(abs(mine), abs(other)) + ABSOLUTE


def _in_form_of(other: Any, mine: Any, work: str) -> Any:
    """Our ids of a row in the shape that the other side has them in."""
    prompt, chosen, rejected = mine
    if work == "reward":
        return [prompt + chosen, prompt + rejected]
    return [prompt, chosen, rejected][: len(other)]


def rollout_of(first: dict[str, Any]) -> list[Any]:
    """The completions that our first step drew, one after another; none where it draws none."""
    return [ids for group in first.get("drawn", []) for ids in group]


def screen(
    job: Job, candidates: Sequence[Setting], say: Say
) -> tuple[dict[Setting, Run], dict[str, Any]]:
    """Every candidate once, checked against ours in its precision; and what was compared."""
    numbers: dict[str, dict[str, Any]] = {}
    runs: dict[Setting, Run] = {}
    compared: dict[str, Any] = {}
    for setting in candidates:
        precision = "float32" if setting.precision == "float32" else "bfloat16"
        ours = numbers.get(precision) or first_numbers(job, precision)
        numbers[precision] = ours
        with worker(job, setting, rollout_of(ours)) as theirs:
            seen = {"ids": theirs.loaded["ids"], **theirs.warm()}
            compared[setting.label] = refuse_disagreement(job, ours, seen, setting.precision)
            runs[setting] = theirs.run()
        say(f"  tried {setting.label}: {runs[setting].rate:.3g} a second")
    return runs, compared


def pair(
    job: Job, ours: Setting, theirs: Setting, repeats: int, say: Say, *, split: bool = True
) -> tuple[Comparison, dict[str, Any]]:
    """Ours and theirs in turn, `repeats` times each; then, if wanted, where our time goes.

    Raises BenchError, before it times anything, unless their first steps agree.
    """
    with worker(job, ours) as a:
        first = {"ids": a.loaded["ids"], **a.warm()}
        with worker(job, theirs, rollout_of(first)) as b:
            second = {"ids": b.loaded["ids"], **b.warm()}
            precisions = {a.loaded["precision"], b.loaded["precision"]}
            strict = precisions == {"float32"}
            refuse_disagreement(job, first, second, "float32" if strict else "bfloat16")
            rounds = []
            for number in range(repeats):
                rounds.append((a.run(), b.run()))
                mine, other = rounds[-1]
                say(f"  round {number + 1}: {mine.rate:.3g} and {other.rate:.3g} a second")
            peaks = (a.loaded["load_peak"], b.loaded["load_peak"])
        parts = a.ask("split") if split else {}
        precision = a.loaded["precision"]
    label = dataclasses.replace(ours, precision=precision).label
    return Comparison(label, theirs.label, tuple(rounds), peaks), parts
