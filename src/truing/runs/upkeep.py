"""Checked by its digests, and removed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from truing.errors import CheckpointError, UsageError
from truing.rundir import RunDirectory, checkpoints
from truing.runs.listing import Run, runs_in, size_of
from truing.storage import read_manifest


def verify(folder: Path) -> Iterator[tuple[Path, str]]:
    """(folder, what is wrong or "") of every finished run and every checkpoint below `folder`."""
    for run in runs_in(folder):
        places = checkpoints(run.path)
        if run.info is None:
            yield run.path, "run.json cannot be read"
        elif run.info.status == "completed":
            places = [run.path, *places]
        for place in places:
            try:
                read_manifest(place)
            except CheckpointError as error:
                yield place, f"{error.where}: {error.what}"
            else:
                yield place, ""


def remove(folder: Path, *, only_checkpoints: bool = False) -> tuple[list[Run], int]:
    """Remove the runs at or below `folder`, or only their checkpoints. Returns (runs, bytes freed).

    Raises UsageError if there is none, for a link, and while a process works on one.
    """
    if folder.is_symlink():
        raise UsageError("this is a link", where=str(folder), remedy="give the folder itself")
    found = runs_in(folder)
    if not found:
        raise UsageError("there is no run here", where=str(folder), remedy="give a run's folder")
    for run in found:
        if run.running:
            raise UsageError(
                "a process works on it", where=str(run.path), remedy="stop it, or wait for it"
            )
    doomed = [p for run in found for p in checkpoints(run.path)] if only_checkpoints else [folder]
    freed = sum(size_of(path) for path in doomed)
    for path in doomed:
        shutil.rmtree(path)
    return found, freed


def children(run: Run) -> list[str]:
    """Stages of the same output that were made from this one."""
    beside = runs_in(run.path.parent)
    return [
        other.path.name
        for other in beside
        if other.info is not None and run.path.name in other.info.parents.values()
    ]


def lineage(run: Run) -> list[str]:
    """The stages it was made from, the first one first, and what that was made from."""
    line, at = [run.path.name], run
    while at.info is not None and (parent := at.info.parents.get("from")) is not None:
        line.append(parent)
        folder = run.path.parent / parent
        if RunDirectory(folder).info() is None:
            break
        at = next(r for r in runs_in(folder))
    return line[::-1]
