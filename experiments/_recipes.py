"""Experiments on a real model: a recipe, run as anyone would run it, and what is kept of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import machine

import truing
from experiments._common import Found, markdown, say
from truing.pipeline.stages.evaluate import RESULTS_FILE
from truing.rundir import RunDirectory

FOLDER = Path(__file__).resolve().parents[1] / "recipes" / "experiments"
KEPT = (
    "objective/scores",
    "objective/kl",
    "objective/kl_coef",
    "objective/entropy",
    "completions/mean_length",
    "completions/clipped_ratio",
    "reward_std",
)
"""Metrics that are kept of every rollout."""


def run_recipe(name: str, seeds: int) -> Found:
    """The recipe once a seed (17, 18, ...). An interrupted run goes on where it was, if the code is
    still the same: numbers of an older one are no results of this one."""
    runs = []
    for seed in range(17, 17 + seeds):
        say(f"{name}, seed {seed}")
        output = Path("runs", "experiments", f"{name}-{seed}-{machine.commit()}")
        summary = truing.run(
            FOLDER / f"{name}.yaml",
            f"seed={seed}",
            f"output={output}",
            resume="dirty" not in output.name,
            overwrite="dirty" in output.name,
        )
        curves = {stage.name: kept(RunDirectory(output / stage.name)) for stage in summary.stages}
        runs.append(
            {
                "seed": seed,
                "policies": {
                    stage.name: measured(output / stage.name)
                    for stage in summary.stages
                    if stage.method == "evaluate"
                },
                "seconds": sum(stage.wall_seconds or 0.0 for stage in summary.stages),
                "curves": {stage: rows for stage, rows in curves.items() if rows},
                "samples": [s.model_dump(exclude_none=True) for s in summary.samples[:3]],
            }
        )
    return {"runs": runs}


def measured(stage: Path) -> list[dict[str, Any]]:
    """The rows of an evaluate stage."""
    rows = json.loads((stage / RESULTS_FILE).read_text(encoding="utf-8"))["policies"]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def kept(run: RunDirectory) -> list[dict[str, float]]:
    """One row a rollout: the lines of metrics.jsonl that carry its numbers."""
    return [
        {"step": row["step"]} | {name: row[name] for name in KEPT if name in row}
        for row in run.metrics()
        if KEPT[0] in row
    ]


def table(found: Found) -> str:
    """Every seed's policies with intervals over prompts, then how each run began and ended."""
    headings = ["seed, policy", "proxy", "gold", "KL (nats)", "length", "distinct-2"]
    policies = [
        [
            f"{run['seed']}, {p['label']}",
            *map(interval, (p.get("proxy"), p.get("gold"), p.get("kl"), p["length"])),
            f"{p['distinct_2']:.2f}",
        ]
        for run in found["runs"]
        for rows in run["policies"].values()
        for p in rows
    ]
    ends = [
        [f"{run['seed']}, {stage}", str(len(rows)), *(ends_of(rows, name) for name in KEPT[:4])]
        for run in found["runs"]
        for stage, rows in run["curves"].items()
    ]
    names = ["seed, run", "rollouts", "score", "KL (nats)", "kl_coef", "entropy (nats)"]
    return f"{markdown(headings, policies)}\n\nFirst → last rollout:\n\n{markdown(names, ends)}"


def interval(value: dict[str, Any] | None) -> str:
    """mean [low, high] over prompts."""
    if value is None:
        return "–"
    return f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def ends_of(rows: list[dict[str, float]], name: str) -> str:
    """The first and the last number of a run."""
    values = [row[name] for row in rows if name in row]
    return f"{values[0]:.2f} → {values[-1]:.2f}" if values else "–"
