"""One `truing` command in a process of its own, a fault planted in it, and what must hold after.

The process is forked from a server that has imported everything already: a run takes a second, a
SIGKILL is a real one, and exit codes are those of the command line.

    result = truing("dpo", folder, plant=[partial(kill_at_step, 3)])
    assert result.code == -signal.SIGKILL and result.fired

A fault says `fire()` when it happens; `truing` raises for one that did not.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

DEADLINE = 60.0
"""Seconds after which a run counts as hung. A run alone takes one or two; machines are shared."""
CLOCKS = re.compile(r"^(seconds|timing/.*|.*_per_second.*)$")
"""Metrics that say how long something took."""

ROWS = [
    {"prompt": f"Number {i}: ", "chosen": f" good {i}", "rejected": f" bad {i} bad"}
    for i in range(20)
]
SAMPLED = ["--reward", "character_share", "--max-completion-length", "6"]
STAGES: dict[str, list[str]] = {
    "sft": ["sft", "--num-train-epochs", "2", "--batch-size", "4"],
    "reward": ["bradley_terry", "--num-train-epochs", "2", "--batch-size", "4"],
    "dpo": ["dpo", "--num-train-epochs", "2", "--batch-size", "4"],
    "ppo": [
        "ppo", *SAMPLED, "--num-rollouts", "3", "--rollout-batch-size", "8", "--batch-size", "4",
        "--num-train-epochs", "2", "--score-normalization", "running", "--kl-control", "budget",
        "--kl-target", "2",
    ],
    "grpo": [
        "grpo", *SAMPLED, "--num-rollouts", "4", "--rollout-batch-size", "4", "--batch-size", "8",
        "--num-generations", "4",
    ],
    "best_of_n": [
        "best-of-n", *SAMPLED, "--num-generations", "4", "--test-prompts", "4",
    ],
}  # fmt: skip
"""A small run of each kind. Trained stages take 8 to 12 steps."""
GENTLE = ("--learning-rate", "1e-5")
"""With this rate ten steps move a weight by up to 1e-4, and rounding moves none by 1e-6."""
METHODS = {"reward": "bradley_terry"}


class LostError(AssertionError):
    """A step, sample, score or line that was there is gone, or someone must repair files."""


class SilentError(AssertionError):
    """The result is another one and nothing says so."""


class HungError(AssertionError):
    """It did not end in time."""


class LeakedError(AssertionError):
    """A process, a lock or a half-written folder stays behind."""


class DidNotFireError(AssertionError):
    """The fault never happened: the test would show nothing."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended."""

    code: int
    """Exit code; minus the signal's number if one ended it."""
    said: str
    fired: int
    """How often the planted faults happened."""
    seconds: float


_SERVER = multiprocessing.get_context("forkserver")
_PATHS = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _PATHS))  # the server finds what it loads


def truing(
    stage: str,
    folder: Path,
    *flags: str,
    plant: Sequence[Callable[[], None]] = (),
    data: Path | None = None,
    model: str = "random:llama",
    deadline: float = DEADLINE,
    during: Callable[[multiprocessing.process.BaseProcess], None] = lambda process: None,
    cwd: Path | None = None,
    may_miss: bool = False,
) -> Result:
    """Run a stage into its own folder in `folder`. `during` gets the running process; a fault that
    does not fire raises unless it `may_miss`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    rows = data or written(folder.parent / "rows.jsonl", ROWS)
    method, *knobs = STAGES[stage]
    if "--reward" in flags:  # a verb's own parameter must not be given twice
        knobs = [knob for knob in knobs if knob not in SAMPLED[:2]]
    argv = [method, *knobs, "--model", model, "--data", str(rows), "--output", str(folder)]
    argv += ["--model.dtype", "float32"]
    if stage != "best_of_n":
        argv += ["--data.test-rows", "4", "--learning-rate", "1e-3", "--save-steps", "1"]
    place = cwd or folder.parent
    return command([*argv, *flags], place, plant, deadline, during, may_miss=may_miss)


def command(
    argv: Sequence[str],
    cwd: Path,
    plant: Sequence[Callable[[], None]] = (),
    deadline: float = DEADLINE,
    during: Callable[[multiprocessing.process.BaseProcess], None] = lambda process: None,
    may_miss: bool = False,
) -> Result:
    """Any command of `truing`, in `cwd`. Raises HungError, LeakedError, DidNotFireError."""
    token, output = cwd / ".fired", cwd / ".said"
    token.unlink(missing_ok=True)
    _SERVER.set_forkserver_preload(["faults_preload"])  # here: others set theirs when imported
    process = _SERVER.Process(target=_child, args=(list(argv), str(cwd), list(plant)))
    started = time.monotonic()
    process.start()
    try:
        during(process)
        process.join(deadline)
        if process.exitcode is None:
            raise HungError(f"truing {' '.join(argv)}: still running after {deadline} s")
    finally:
        group = process.pid
        assert group is not None
        left = [pid for pid in in_group(group) if pid != group]
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        process.join()
    said = output.read_text(errors="replace") if output.exists() else ""
    if left:
        raise LeakedError(f"processes {left} outlived the run\n{said}")
    fired = token.stat().st_size if token.exists() else 0
    if plant and not fired and not may_miss:
        raise DidNotFireError(f"nothing happened; exit code {process.exitcode}\n{said}")
    assert process.exitcode is not None
    return Result(process.exitcode, said, fired, time.monotonic() - started)


def _child(argv: list[str], cwd: str, plant: list[Callable[[], None]]) -> None:
    os.setpgid(0, 0)
    os.chdir(cwd)
    out = os.open(".said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(out, stream)
    import torch

    torch.set_num_threads(1)
    assert "faults_preload" in sys.modules  # a server that cannot load it says nothing
    from truing import cli

    _leave_out_what_costs()
    for fault in plant:
        fault()
    sys.argv = ["truing", *argv]
    cli.main()


def _leave_out_what_costs() -> None:
    """The report's pictures, and how fast this machine is: a second of every run, and nothing that
    anybody goes on from."""
    from truing.pipeline import run
    from truing.training import speed

    run.write_report = lambda output: None
    speed.RATE_SECONDS = 0.0


def fire() -> None:
    """Called by a fault, in the run's process, when it happens."""
    handle = os.open(".fired", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, b"x")
    os.close(handle)


def in_group(group: int) -> list[int]:
    """Processes of a group that are no zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def written(path: Path, rows: Sequence[dict]) -> Path:
    """Rows as a JSON-lines file."""
    if not path.exists():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def second(stage):
    """The second rollout; Best-of-N draws once."""
    return 1 if stage == "best_of_n" else 2


def stage_folder(stage: str, folder: Path) -> Path:
    """Where the stage itself lies in a run's output."""
    return folder / METHODS.get(stage, stage)


def facts(stage: str, folder: Path) -> dict:
    """What run.json declares."""
    found: dict = json.loads((stage_folder(stage, folder) / "run.json").read_text())["facts"]
    return found


def lines(stage: str, folder: Path) -> list[dict]:
    """metrics.jsonl."""
    text = (stage_folder(stage, folder) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def left_by(stage: str, folder: Path) -> dict[str, object]:
    """What a run's result is, clocks excepted: hashes of weights and samples, metrics."""
    run = stage_folder(stage, folder)
    files = [*run.glob("*.safetensors"), *run.glob("adapter/*.safetensors")]
    files += [*run.glob("samples/*.jsonl"), *run.glob("eval/*")]
    found: dict[str, object] = {
        file.relative_to(run).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }
    metrics = run / "metrics.jsonl"
    if metrics.exists():
        for number, line in enumerate(metrics.read_text().splitlines()):
            found[f"metrics line {number + 1}"] = {
                name: value for name, value in json.loads(line).items() if not CLOCKS.match(name)
            }
    return found


def same(stage: str, folder: Path, whole: dict[str, object]) -> None:
    """The run left what the unbroken one left, bit for bit, and nothing half-written beside it."""
    found = left_by(stage, folder)
    if missing := sorted(set(whole) - set(found)):
        raise LostError(f"{stage}: {missing} are gone")
    for name, value in found.items():
        if name not in whole or whole[name] != value:
            raise SilentError(f"{stage}: {name} is {value}, not {whole.get(name)}")
    nothing_half_written(folder)


def nothing_half_written(folder: Path) -> None:
    if partial := [p for p in folder.rglob(".*") if p.name.endswith((".partial", ".tmp"))]:
        raise LeakedError(f"left behind: {partial}")


def close(stage: str, folder: Path, other: Path, to: float = 1e-6) -> None:
    """Two runs left the same weights to rounding."""
    from safetensors.torch import load_file

    (mine,), (theirs,) = ([*stage_folder(stage, f).glob("*.safetensors")] for f in (folder, other))
    ours, others = load_file(mine), load_file(theirs)
    assert ours.keys() == others.keys()
    gap = max(float((ours[name] - others[name]).abs().max()) for name in ours)
    if not gap <= to:
        raise SilentError(f"{stage}: weights are {gap} apart")


def succeeded(result: Result) -> Result:
    if result.code:
        raise LostError(f"exit code {result.code}\n{result.said}")
    return result


def stopped(result: Result, code: int, *words: str) -> Result:
    """It ended with this code, said these words and what to do, and showed no traceback."""
    assert result.code == code, f"exit code {result.code}, not {code}\n{result.said}"
    assert "Traceback" not in result.said, result.said
    for word in words:
        assert word in result.said, f"'{word}' is not in:\n{result.said}"
    if code in range(2, 9):
        assert "what to do:" in result.said, result.said
    return result
