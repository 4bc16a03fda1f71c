"""`report.html`: one page about one run, from summary.json and the stages' metrics. No torch.

The page is self-contained: no script, no request. Text of models and recipes is hostile text: the
template escapes everything but our own SVG, and a content policy forbids the rest.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from importlib.resources import files
from math import log
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import ValidationError

from truing.errors import CheckpointError
from truing.evaluation import plots, table
from truing.evaluation.summary import Interval, StageResult, Summary
from truing.groups import FinishReason
from truing.rundir import (
    BEST_OF_N_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
    RunDirectory,
    write_text,
)


class Expected(NamedTuple):
    """What a metric must be before the first update, and why."""

    value: float
    tolerance: float
    symbol: str
    why: str


SYMBOLS = {log(2): "ln 2", 2 * log(2): "2 ln 2"}
WHY: Mapping[str, str] = {
    "loss": "The policy is still the reference, so the loss is a constant of the method.",
    "rewards/margins": "No side of a pair is rewarded yet.",
    "rewards/mean": "No completion is rewarded yet.",
    "val/ratio": "The trainer measures every token as it did when the rollout was made.",
    "policy/clipfrac_avg": "Where every ratio is 1, none is clipped.",
    "clip_ratio/region_mean": "Where every ratio is 1, none is clipped.",
    "objective/kl": "The first rollout is drawn by the reference itself.",
}
"""Why a metric is known before the first update; what it must be, the objectives declare."""


class Check(NamedTuple):
    """One row of the first-step table."""

    stage: str
    metric: str
    expected: Expected
    found: float

    @property
    def holds(self) -> bool:
        return abs(self.found - self.expected.value) <= self.expected.tolerance


class Pictures(NamedTuple):
    """A stage and the curves of its training."""

    stage: StageResult
    svgs: list[str]


def write_report(output: Path) -> Path:
    """Write OUTPUT/report.html from OUTPUT/summary.json and the stage folders; returns its path.

    Raises CheckpointError if summary.json is absent or not a summary.
    """
    summary = read_summary(output)
    runs = {s.name: RunDirectory(output / s.name) for s in summary.stages}
    metrics = {name: run.metrics() for name, run in runs.items()}
    curves = {name: found for name, run in runs.items() if (found := run.read_json(BEST_OF_N_FILE))}
    path = output / REPORT_FILE
    write_text(path, render(summary, metrics, curves))
    return path


def read_summary(output: Path) -> Summary:
    """OUTPUT/summary.json. Raises CheckpointError if it is absent or not a summary."""
    path = output / SUMMARY_FILE
    if not path.is_file():
        raise CheckpointError(
            "there is no summary to report on",
            where=str(path),
            remedy="finish the run with --resume; its evaluate stage writes the summary",
        )
    try:
        return Summary.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise CheckpointError(
            "the summary cannot be read",
            where=str(path),
            remedy="remove it and run again with --resume",
        ) from error


def render(
    summary: Summary,
    metrics: Mapping[str, plots.Metrics],
    curves: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> str:
    """The page. `metrics` is stage -> the lines of its metrics.jsonl, `curves` stage -> its
    eval/best_of_n.json."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = Markup  # the only unescaped content: what plots.py drew
    text = files("truing.evaluation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(text).render(
        summary=summary,
        write=table,
        styles=plots.policy_styles(summary),
        policies=table.policy_grid(summary),
        stages=table.stage_grid(summary),
        prompts=_prompts(summary),
        reward_kl=plots.reward_kl(summary),
        gains=plots.gains(summary),
        best_of_n=_best_of_n(summary, curves),
        training=_training(summary, metrics),
        checks=_checks(summary),
        sampled=_sampled(summary),
        cut_off=FinishReason.LENGTH.value,
        stopped=FinishReason.STOP.value,
        command=f"truing run {shlex.quote(summary.name + '.yaml')} seed={summary.seed}",
    )


def _prompts(summary: Summary) -> str:
    """How many prompts the policies' numbers rest on."""
    counts = {value.n for p in summary.policies for _, value in p if isinstance(value, Interval)}
    return " to ".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else ""


def _sampled(summary: Summary) -> list[str]:
    """Labels that have samples: in the order of the table, then any other."""
    found = dict.fromkeys(label for s in summary.samples for label in s.completions)
    known = [p.label for p in summary.policies if p.label in found]
    return known + [label for label in found if label not in known]


def _training(summary: Summary, metrics: Mapping[str, plots.Metrics]) -> dict[str, list[Pictures]]:
    """Family of objectives (a key of plots.CURVES) -> its stages with their pictures."""
    styles = plots.policy_styles(summary)
    colours = {p.stage: styles[p.label].colour for p in reversed(summary.policies)}
    ceilings = {r.stage: r.ceiling for r in summary.reward_models if r.ceiling is not None}
    found: dict[str, list[Pictures]] = {key: [] for key in plots.CURVES}
    for stage in summary.stages:
        rows = metrics.get(stage.name, [])
        key = plots.family(rows)
        if key is None:
            continue
        svgs = []
        for spec in plots.CURVES[key]:
            bounded = "accuracy" in spec.metrics and stage.name in ceilings
            svgs.append(
                plots.curve(
                    spec,
                    rows,
                    stage=stage.name,
                    colour=colours.get(stage.name, plots.INK),
                    guides={"ceiling": ceilings[stage.name]} if bounded else None,
                )
            )
        found[key].append(Pictures(stage, [svg for svg in svgs if svg]))
    return found


def _best_of_n(summary: Summary, curves: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A picture of each pool."""
    styles = plots.policy_styles(summary)
    colours = {p.stage: styles[p.label].colour for p in reversed(summary.policies)}
    return [
        plots.best_of_n(
            found["points"],
            stage,
            _over(found),
            colours.get(stage, plots.PALETTE[0]),
        )
        for stage, found in curves.items()
    ]


def _over(found: Mapping[str, Any]) -> str:
    """Which prompts a curve is of, where it is not all of them."""
    left_out, kept = found["prompts_left_out"], found["prompts"]
    if not left_out:
        return ""
    return f"over {kept:,} of {kept + left_out:,} prompts: the others have unscored completions"


def _checks(summary: Summary) -> list[Check]:
    """What was measured before the first update and is known in advance."""
    return [
        Check(stage, metric, _expected(metric, *known), summary.first_step[stage][metric])
        for stage, declared in summary.first_step_expected.items()
        for metric, known in declared.items()
        if metric in summary.first_step.get(stage, {})
    ]


def _expected(metric: str, value: float, tolerance: float) -> Expected:
    symbol = next((s for number, s in SYMBOLS.items() if abs(value - number) < 1e-9), f"{value:g}")
    inner = metric.partition("/")[2]  # a mixture names the part first: dpo/loss
    return Expected(value, tolerance, symbol, WHY.get(metric) or WHY.get(inner, ""))
