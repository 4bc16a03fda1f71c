"""Run a recipe: check everything, run what is not done, summarise what came out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from truing.config import REWARD_ROLES, Recipe
from truing.errors import ResourceError, UsageError, redacted
from truing.evaluation.report import write_report
from truing.memory import is_memory_error
from truing.pipeline import graph, machine, stages
from truing.pipeline.context import Context
from truing.pipeline.decisions import Decision, decide, refuse
from truing.pipeline.keys import key_of
from truing.pipeline.stages.base import PipelineStage
from truing.pipeline.summarise import summarise
from truing.rundir import RESUMED_THOUGH, SUMMARY_FILE, RunInfo, write_text
from truing.runs.claim import claimed

SHOWN = ("loss", "eval/accuracy", "rewards/accuracies", "objective/scores", "objective/kl")
"""Metrics worth a place on the progress line."""
SHOWN_PLACES = 3
"""Places of rows in a line; run.json has more."""


def run_recipe(
    recipe: Recipe, *, where: str, resume: bool, overwrite: bool, console: Console
) -> Path:
    """Every stage in order; finished ones with unchanged inputs are kept. Returns the output.

    Raises TruingError; a stage that fails says so in its run.json.
    """
    context, planned, parents = _checked(recipe, where, console)
    output = context.output
    with claimed(output, resume=resume, overwrite=overwrite):
        decisions = decide(context, planned, parents)
        refuse(decisions, context)
        _say_data(context)
        for number, (name, decision) in enumerate(decisions.items(), start=1):
            label = f"[{number}/{len(decisions)}] {name} ({planned[name].config.method})"
            if decision.action == "keep":
                context.say(f"{label}: {decision.why}, kept")
            else:
                _run_stage(context, planned[name], parents[name], decision, label, console)
            planned[name].tidy(context)
        summary = summarise(context, planned)
        write_text(output / SUMMARY_FILE, summary.model_dump_json(indent=2) + "\n")
        write_report(output)
    return output


def preview(recipe: Recipe, *, where: str, console: Console) -> None:
    """Say what would be done about each stage, and why; write nothing."""
    context, planned, parents = _checked(recipe, where, console)
    for name, decision in decide(context, planned, parents).items():
        method = planned[name].config.method
        context.say(f"{decision.action:7} {name} ({method}): {decision.why}")


Planned = Mapping[str, PipelineStage]
Parents = Mapping[str, Mapping[str, str]]


def _checked(recipe: Recipe, where: str, console: Console) -> tuple[Context, Planned, Parents]:
    """The stages of a recipe in the order they run, and their parents; all that can be found wrong
    before weights are loaded is."""
    stages_of = {name: stages.read(name, raw, where) for name, raw in recipe.stages.items()}
    parents = {name: stage.config.parents() for name, stage in stages_of.items()}
    planned = {name: stages_of[name] for name in graph.order(parents, where)}
    _check_kinds(planned, parents, where)
    context = Context(
        recipe,
        Path(recipe.output),
        where,
        say=lambda text: console.print(text, highlight=False, soft_wrap=True, markup=False),
    )
    for stage in planned.values():
        stage.check(context)
    return context, planned, parents


def _check_kinds(
    planned: Mapping[str, PipelineStage], parents: Mapping[str, Mapping[str, str]], where: str
) -> None:
    """A role is played by a stage that makes the right thing."""
    wanted = {"from": ("weights",), "data": ("groups",)}
    wanted |= dict.fromkeys(REWARD_ROLES, ("reward",))
    for name, roles in parents.items():
        for role, parent in roles.items():
            makes = wanted.get(role.partition(".")[0], ("weights", "completions"))
            if parent in planned and planned[parent].makes not in makes:
                raise UsageError(
                    f"stages.{name}: {role} names '{parent}', which makes "
                    f"{planned[parent].makes or 'nothing to build on'}, not {makes[0]}",
                    where=where,
                    remedy=f"name a stage that makes {' or '.join(makes)}",
                )


def _new_info(
    context: Context, stage: PipelineStage, parents: Mapping[str, str], decision: Decision
) -> RunInfo:
    """What run.json says of a stage before it begins, or goes on."""
    info = RunInfo(
        stage=stage.name,
        method=stage.config.method,
        seed=context.seed(stage.name, stage.config.seed),
        parents=dict(parents),
        fingerprint=key_of(decision.inputs),
        inputs=decision.inputs,
        versions=machine.versions(),
        machine=machine.arithmetic(),
        device=str(context.device),
    )
    earlier = decision.earlier.facts.get(RESUMED_THOUGH, []) if decision.earlier else []
    if though := [*earlier, *decision.though]:
        info.facts[RESUMED_THOUGH] = though
    return info


def _run_stage(
    context: Context,
    stage: PipelineStage,
    parents: Mapping[str, str],
    decision: Decision,
    label: str,
    console: Console,
) -> None:
    """One stage from an empty folder, or from where it stopped earlier, to `completed`, or to
    `failed` or `stopped` with the reason."""
    run, earlier = context.run(stage.name), decision.earlier
    if run.info() is not None:
        context.say(f"{label}: {'goes on ' if earlier else 'runs again, '}{decision.why}")
    info = _new_info(context, stage, parents, decision)
    run.start(info, stage.knobs, keep=earlier is not None)
    machine.reset_peak_memory()
    started = time.monotonic() - ((earlier.wall_seconds or 0.0) if earlier else 0.0)
    try:
        with _progress(console) as progress:
            task = progress.add_task(label, total=None, note="")

            def tick(done: int, total: int, metrics: Mapping[str, float]) -> None:
                note = "  ".join(f"{k} {metrics[k]:.3f}" for k in SHOWN if k in metrics)
                progress.update(task, completed=done, total=total, note=note)

            totals = stage.run(context, info, tick)
    except BaseException as error:  # whatever it was, run.json says so before it goes on
        info.status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        info.reason = redacted(str(error) or type(error).__name__)
        info.wall_seconds = round(time.monotonic() - started, 3)
        try:
            run.write_info(info)
        except ResourceError as another:  # the first error says more
            context.say(f"{label}: {another}")
        if is_memory_error(error):
            raise ResourceError(
                "out of memory",
                where=f"stages.{stage.name}",
                remedy="lower micro_batch_tokens or sampling_batch_size: neither changes results",
            ) from error
        raise
    info.facts |= context.data_facts
    info.wall_seconds = round(time.monotonic() - started, 3)
    info.steps, info.tokens, info.model_copies = totals.steps, totals.tokens, totals.model_copies
    info.peak_memory_bytes = machine.peak_memory()
    run.finish(info)
    if not console.is_terminal:
        context.say(f"{label}: {info.wall_seconds:.0f} s")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )


def _say_data(context: Context) -> None:
    """One line on what was read, and one for each reason rows were dropped or deserve a look."""
    train, test = context.groups("data", "train"), context.groups("data", "test")
    kind = (train or test)[0].type
    context.say(
        f"data: {kind} rows, {len(train):,} to train on, {len(test):,} held out "
        f"({context.recipe.data.path})"
    )
    found = context.data_facts
    for what, verb in (("dropped_rows", "dropped: "), ("doubtful_rows", "rows ")):
        for name, reasons in found[what].items():
            where = "" if name == "data" else f" ({name})"
            for reason, rows in reasons.items():
                places = ", ".join(rows["places"][:SHOWN_PLACES])
                more = ", ..." if rows["rows"] > SHOWN_PLACES else ""
                context.say(f"  {rows['rows']:,} {verb}{reason}{where}: {places}{more}")
