"""`truing runs`: what lies in output folders. Parse, call, print; no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from truing.errors import CheckpointError
from truing.rundir import RunDirectory
from truing.runs import compare as comparing
from truing.runs import upkeep
from truing.runs.listing import one_run, runs_in, size_of

Flag = Annotated[bool, Parameter(negative="")]
app = App(name="runs", help="Look at runs: list, show, compare, verify, remove.")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table: Table) -> None:
    Console(highlight=False, markup=False).print(table)


@app.command
def ls(folder: Path = Path("runs")) -> None:
    """Every run below a folder, and how it stands.

    Parameters
    ----------
    folder
        A folder of outputs.
    """
    table = _table("run", "method", "steps", "started", "status")
    for run in runs_in(folder):
        method, started = (run.info.method, run.info.started) if run.info else ("?", "?")
        place = str(run.path.relative_to(folder)) if run.path != folder else run.path.name
        table.add_row(place, method, str(run.step), started, run.status)
    _print(table)


@app.command
def show(path: Path) -> None:
    """One run: state, lineage, what it was given, its last numbers.

    Parameters
    ----------
    path
        A run's folder, or an output folder with one run.
    """
    run = one_run(path)
    print(f"{run.path}: {run.status}")
    if run.info is not None:
        print(f"lineage: {' -> '.join(upkeep.lineage(run))}")
        print(f"started {run.info.started}, {run.info.wall_seconds} s, seed {run.info.seed}")
        print(f"key {run.info.fingerprint}: {run.info.inputs}")
    print(f"{size_of(run.path):,} bytes")
    print(yaml.safe_dump(RunDirectory(run.path).config(), sort_keys=False))
    table = _table("metric", "last")
    for name, value in comparing.last_metrics(run.path).items():
        table.add_row(name, f"{value:.6g}")
    _print(table)


@app.command
def compare(one: Path, other: Path) -> None:
    """Two runs: keys that differ, and the last numbers side by side.

    Parameters
    ----------
    one
        A run's folder.
    other
        Another.
    """
    first, second = one_run(one), one_run(other)
    if names := comparing.differing_inputs(first, second):
        print(f"made from different: {', '.join(names)}")
    for title, rows in (
        ("key", comparing.differing_config(first, second)),
        ("metric", comparing.metrics_side_by_side(first, second)),
    ):
        table = _table(title, str(one), str(other))
        for row in rows:
            table.add_row(*row)
        if rows:
            _print(table)
        else:
            print(f"no {title} differs")


@app.command
def verify(path: Path = Path("runs")) -> None:
    """Are all files of finished runs and checkpoints what they were when written?

    Parameters
    ----------
    path
        A run, an output, or a folder of outputs.
    """
    damaged = []
    for folder, wrong in upkeep.verify(path):
        print(f"{'DAMAGED' if wrong else 'ok':8} {folder} {wrong}".rstrip())
        damaged += [folder] if wrong else []
    if damaged:
        raise CheckpointError(
            f"{len(damaged)} damaged",
            where=str(damaged[0]),
            remedy="--resume goes on from the newest good checkpoint and makes damaged stages anew",
        )


@app.command
def rm(path: Path, *, checkpoints: Flag = False) -> None:
    """Remove a run, or an output with all its runs.

    Parameters
    ----------
    path
        A run's folder, or an output.
    checkpoints
        Remove its checkpoint-N folders only.
    """
    made = [] if checkpoints else [c for run in runs_in(path) for c in upkeep.children(run)]
    runs, freed = upkeep.remove(path, only_checkpoints=checkpoints)
    print(
        f"removed {len(runs)} runs' {'checkpoints' if checkpoints else 'folders'}: {freed:,} bytes"
    )
    if kept := sorted(set(made) - {run.path.name for run in runs}):
        print(f"made from it: {', '.join(kept)}; --resume makes it again, the same")
