"""Which stages run, which are kept, which go on, and why: `truing run --dry-run` prints it, and
`truing run` does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from truing.errors import CheckpointError
from truing.pipeline.context import Context
from truing.pipeline.keys import inputs_of, key_of
from truing.pipeline.stages.base import PipelineStage
from truing.rundir import CONFIG_FILE, RunDirectory, RunInfo, checkpoints

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
        found[name] = _decide(context.run(name), stage.knobs, inputs)
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


def _decide(run: RunDirectory, knobs: Mapping[str, Any], inputs: dict[str, str]) -> Decision:
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
    though = ", though Truing's code has changed since" if changed else ""
    return Decision("go on", f"from {saved[0].name}{though}", inputs, info)


def _changes(
    run: RunDirectory, info: RunInfo, knobs: Mapping[str, Any], inputs: Mapping[str, str]
) -> dict[str, str]:
    """Part that differs from the earlier run -> how to say it."""
    parts = [p for p in {**info.inputs, **inputs} if info.inputs.get(p) != inputs.get(p)]
    said = {part: _said(part, info) for part in parts}
    if "config" in said:
        before = yaml.safe_load((run.path / CONFIG_FILE).read_text(encoding="utf-8"))
        said["config"] = _differing(before, knobs)
    return said


def _said(part: str, info: RunInfo) -> str:
    return f"{part} ({info.parents[part]})" if part in info.parents and part != "data" else part


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [n for n in {**before, **now} if before.get(n) != now.get(n)]
    shown = [f"{n} {before.get(n)} -> {now.get(n)}" for n in names[:MANY]]
    return ", ".join(shown) + (f" and {len(names) - MANY} more keys" if len(names) > MANY else "")
