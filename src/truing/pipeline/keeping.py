"""A training stage that can be stopped anywhere: what it saves, and where it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from truing.config import Training
from truing.errors import ResourceError
from truing.rundir import RunDirectory, RunInfo
from truing.storage import DISK
from truing.training.build import Built
from truing.training.checkpoints import State, load_state, newest, save_checkpoint
from truing.training.guards import check_finite
from truing.training.keeper import Keeper
from truing.training.loop import Progress
from truing.training.state import capture, restore

Export = Callable[[Path, Mapping[str, Tensor]], None]
"""Writes into a folder what others open, from these masters."""


def own_facts(info: RunInfo) -> dict[str, Any]:
    """Whose checkpoint it is: a resumed run refuses one of anything else. Our code may change."""
    return {"stage": info.stage, **{k: v for k, v in info.inputs.items() if k != "code"}}


def kept(
    built: Built,
    training: Training,
    run: RunDirectory,
    progress: Progress,
    facts: Mapping[str, Any],
    export: Export,
) -> Keeper:
    """What saves this stage while it trains. `facts` say whose checkpoint it is."""

    def place() -> State:
        found = built.source.state()
        found.numbers |= {"metrics_bytes": run.metrics_bytes, "progress": asdict(progress)}
        return found

    def save(taken: int, state: State) -> None:
        run.sync_metrics()  # the checkpoint says how long the file is
        where = f"{run.path.name}, checkpoint-{taken}"
        check_finite(state.tensors["masters"], where)
        built.frozen.check(where)
        save_checkpoint(
            run.path,
            taken,
            state,
            lambda folder: export(folder, state.tensors["masters"]),
            facts,
            keep=training.save_total_limit,
        )

    minutes = training.save_minutes
    return Keeper(
        place=place,
        capture=lambda at_border: capture(built, at_border),
        save=save,
        every_steps=training.save_steps,
        every_seconds=None if minutes is None else 60 * minutes,
    )


def preflight(built: Built, training: Training, run: RunDirectory) -> None:
    """There is room for what will be saved. Raises ResourceError with the bytes that are needed,
    before the first step rather than at the first save.

    A checkpoint is at least masters, two moments each, and the weights that others open.
    """
    masters = sum(master.nbytes for master in built.step.masters.masters.values())
    exported = 4 * sum(p.numel() for p in built.roles.policy.parameters())
    saves = training.save_steps is not None or training.save_minutes is not None
    folders = training.save_total_limit + 1 if saves else 0  # the oldest goes after the newest came
    needed = folders * (3 * masters + exported) + exported
    free = DISK.free_bytes(run.path)
    if free < needed:
        raise ResourceError(
            f"{needed:,} bytes are needed for {folders} checkpoints and the result, {free:,} are "
            "free",
            where=str(run.path),
            remedy="free some space, choose another output, lower save_total_limit, or turn "
            "checkpoints off: save_minutes: null",
        )


def resumed(
    built: Built,
    run: RunDirectory,
    progress: Progress,
    facts: Mapping[str, Any],
    say: Callable[[str], None],
) -> Path | None:
    """Put the newest whole checkpoint, if there is one, into a stage that was built anew.

    Raises CheckpointError if there are checkpoints and none can be used.
    """
    folder = newest(run.path, facts, say)
    if folder is None:
        run.cut_metrics(0)  # of steps that nothing was kept of
        return None
    state = load_state(folder)
    restore(built, state, str(folder))
    place = state.numbers["place"]
    run.cut_metrics(place["metrics_bytes"])
    progress.tokens, progress.seconds = place["progress"]["tokens"], place["progress"]["seconds"]
    return folder
