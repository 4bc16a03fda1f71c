"""The runs below a folder, and how each stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from truing.errors import CheckpointError, UsageError
from truing.rundir import RUN_FILE, RunDirectory, RunInfo, checkpoints
from truing.runs.claim import is_claimed
from truing.storage import files_of


@dataclass(frozen=True, slots=True)
class Run:
    """A stage's folder, as it is found."""

    path: Path
    info: RunInfo | None
    """None if run.json cannot be read."""
    step: int
    """Of the last line of its metrics."""
    saved: int | None
    """Step of the newest checkpoint."""
    running: bool
    """Whether a process holds the lock of its output."""

    @property
    def status(self) -> str:
        """completed; running at step k; stopped at step k, and from where it goes on; failed, and
        why."""
        if self.info is None:
            return "unreadable: run.json"
        if self.info.status == "completed":
            return "completed"
        if self.info.status == "running" and self.running:
            return f"running, at step {self.step}"
        goes_on = "" if self.saved is None else f", resumable from step {self.saved}"
        if self.info.status == "failed":
            return f"failed at step {self.step}{goes_on}: {self.info.reason.splitlines()[0]}"
        killed = "killed" if self.info.status == "running" else "stopped"
        return f"{killed} at step {self.step}{goes_on}"


def runs_in(folder: Path) -> list[Run]:
    """Every run at or below `folder`, oldest first; checkpoints and hidden folders are not looked
    into. Raises UsageError if there is no such folder."""
    if not folder.is_dir():
        raise UsageError("no such folder", where=str(folder), remedy="give a folder of runs")
    found = [read(path) for path in _folders(folder)]
    return sorted(found, key=lambda run: (run.info.started if run.info else "", run.path))


def _folders(folder: Path) -> Iterator[Path]:
    if (folder / RUN_FILE).is_file():
        yield folder
        return
    for inner in sorted(folder.iterdir()):
        if inner.is_dir() and not inner.is_symlink() and not inner.name.startswith("."):
            yield from _folders(inner)


def read(path: Path) -> Run:
    """The run in this very folder."""
    directory = RunDirectory(path)
    try:
        info = directory.info()
    except CheckpointError:
        info = None
    lines = directory.metrics()
    saved = checkpoints(path)
    return Run(
        path,
        info,
        step=int(lines[-1]["step"]) if lines else 0,
        saved=int(saved[0].name.partition("-")[2]) if saved else None,
        running=is_claimed(path.parent),
    )


def one_run(path: Path) -> Run:
    """The run in a folder, or the only one below it. Raises UsageError with the choice."""
    found = runs_in(path)
    if len(found) != 1:
        listed = ", ".join(str(run.path) for run in found) or "there is none here"
        raise UsageError(f"{len(found)} runs", where=str(path), remedy=f"name one: {listed}")
    return found[0]


def size_of(path: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(file.stat().st_size for file in files_of(path))
