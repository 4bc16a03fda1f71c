"""Which stages run, which are kept, which go on, and why: `truing run --dry-run` prints it, and
`truing run` does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from truing.config import LIMITS, WITHOUT_EFFECT
from truing.errors import CheckpointError
from truing.pipeline import machine
from truing.pipeline.context import Context
from truing.pipeline.keys import inputs_of, key_of
from truing.pipeline.stages.base import PipelineStage
from truing.rundir import RunDirectory, RunInfo, checkpoints

MANY = 3
"""More changed keys than this are counted, not named."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done about one stage."""

    action: Literal["run", "keep", "go on", "refuse"]
    why: str
    inputs: dict[str, str]
    """What its result depends on, part by part."""
    earlier: RunInfo | None = None
    """The run that is gone on with."""
    though: tuple[str, ...] = ()
    """What has changed since then that lets it go on, but not to the same bits."""


def decide(
    context: Context,
    planned: Mapping[str, PipelineStage],
    parents: Mapping[str, Mapping[str, str]],
) -> dict[str, Decision]:
    """Stage -> decision, for stages in the order they run. Nothing is written, no weights are
    loaded."""
    keys: dict[str, str] = {}
    found: dict[str, Decision] = {}
    for name, stage in planned.items():
        inputs = inputs_of(context, stage, parents[name], keys)
        keys[name] = key_of(inputs)
        found[name] = _decide(context, context.run(name), stage.knobs, inputs)
    return found


def refuse(decisions: Mapping[str, Decision], context: Context) -> None:
    """Raises CheckpointError for the first stage that cannot be gone on with."""
    for name, decision in decisions.items():
        if decision.action == "refuse":
            folder = context.run(name).path
            raise CheckpointError(
                decision.why,
                where=str(folder),
                remedy=f"undo that; or `truing runs rm {folder}` to train it anew; or another "
                "output",
            )


def _decide(
    context: Context, run: RunDirectory, knobs: Mapping[str, Any], inputs: dict[str, str]
) -> Decision:
    info = run.info()
    if info is None:
        return Decision("run", "not run yet", inputs)
    changed = _changes(run, info, knobs, inputs)
    if info.status == "completed":
        if changed:
            return Decision("run", f"changed: {', '.join(changed.values())}", inputs)
        try:
            run.verify()
        except CheckpointError as error:
            return Decision("run", f"damaged: {error.where}: {error.what}", inputs)
        return Decision("keep", "done before", inputs)
    saved = checkpoints(run.path)
    if not saved:
        return Decision("run", "it stopped before its first checkpoint", inputs)
    if blocking := [text for part, text in changed.items() if part != "code"]:
        why = f"it stopped at {saved[0].name}, and since then changed: {', '.join(blocking)}"
        return Decision("refuse", why, inputs)
    though = (
        *(["Truing's code"] if changed else []),
        *_rounding_changes(info, str(context.device)),
    )
    why = f"from {saved[0].name}"
    if though:
        why += f", though since then changed: {', '.join(though)} (equal bits are not promised)"
    return Decision("go on", why, inputs, info, though)


def _changes(
    run: RunDirectory, info: RunInfo, knobs: Mapping[str, Any], inputs: Mapping[str, str]
) -> dict[str, str]:
    """Part that differs from the earlier run -> how to say it."""
    parts = [p for p in {**info.inputs, **inputs} if info.inputs.get(p) != inputs.get(p)]
    said = {part: _said(part, info) for part in parts}
    if changed := _changed_knobs(run, knobs, all_of_them="config" in said):
        said["config"] = changed
    return said


def _said(part: str, info: RunInfo) -> str:
    return f"{part} ({info.parents[part]})" if part in info.parents and part != "data" else part


def _rounding_changes(info: RunInfo, device: str) -> list[str]:
    """What of packages and machine is not what the stopped run had."""
    before = info.versions | info.machine | {"device": info.device}
    now = machine.versions() | machine.arithmetic() | {"device": device}
    before.pop("truing", None)  # of our code the key says more than its version
    return [f"{n} {before[n]} -> {now.get(n)}" for n in before if before[n] != now.get(n)]


def _changed_knobs(run: RunDirectory, now: Mapping[str, Any], *, all_of_them: bool) -> str:
    """What has an effect and was another value, in words; else only limits that were lowered."""
    try:
        before = run.config()
    except CheckpointError:
        before = {}
    if not before:  # gone or damaged: its digest says so of a finished run
        return ""
    names = {**before, **now} if all_of_them else LIMITS & before.keys() & now.keys()
    changed = [n for n in names if _matters(n, before.get(n), now.get(n))]
    shown = [f"{n} {before.get(n)} -> {now.get(n)}" for n in changed[:MANY]]
    more = len(changed) - MANY
    return ", ".join(shown) + (f" and {more} more keys" if more > 0 else "")


def _matters(name: str, before: Any, now: Any) -> bool:
    if name in LIMITS and None not in (before, now):  # else it is another method's
        return bool(now < before)
    return name not in WITHOUT_EFFECT and before != now
