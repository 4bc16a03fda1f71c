"""Stage folders to `summary.json`: the numbers of a run, and what they say."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from truing.evaluation.summary import (
    Interval,
    PolicyResult,
    RewardModelResult,
    Sample,
    StageResult,
    Summary,
)
from truing.pipeline import machine
from truing.pipeline.context import Context
from truing.pipeline.stages.base import PipelineStage
from truing.pipeline.stages.evaluate import RESULTS_FILE, EvaluateStage
from truing.rundir import RunInfo


def summarise(context: Context, planned: Mapping[str, PipelineStage]) -> Summary:
    """Everything the stages left, in one object."""
    infos = {name: info for name in planned if (info := context.run(name).info())}
    evaluations = [stage for stage in planned.values() if isinstance(stage, EvaluateStage)]
    policies: list[PolicyResult] = []
    samples: list[Sample] = []
    reference = None
    for stage in evaluations:
        path = context.run(stage.name).path / RESULTS_FILE
        found = json.loads(path.read_text(encoding="utf-8"))
        policies += [PolicyResult.model_validate(row) for row in found["policies"]]
        samples += [Sample.model_validate(row) for row in found["samples"]]
        labels = {stage_: label for label, stage_ in stage.config.policies.items()}
        reference = labels[stage.config.reference]
    reward_models = _reward_models(infos)
    return Summary(
        name=context.recipe.name,
        seed=context.recipe.seed,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        machine=machine.describe(),
        versions=machine.versions(),
        precision=str(context.dtype).removeprefix("torch."),
        reference=reference,
        policies=policies,
        stages=[_stage(info) for info in infos.values()],
        reward_models=reward_models,
        first_step=_facts(infos, "first_step"),
        first_step_expected=_facts(infos, "first_step_expected"),
        verdicts=verdicts(policies, reference, reward_models),
        samples=samples,
    )


def _facts(infos: dict[str, RunInfo], name: str) -> dict[str, Any]:
    """What the stages noted under this name."""
    return {stage: info.facts[name] for stage, info in infos.items() if name in info.facts}


def _stage(info: RunInfo) -> StageResult:
    seconds = info.wall_seconds
    return StageResult(
        name=info.stage,
        method=info.method,
        wall_seconds=seconds,
        steps=info.steps,
        tokens=info.tokens,
        tokens_per_second=info.tokens / seconds if seconds else None,
        fraction_of_arithmetic_limit=info.facts.get("speed", {}).get(
            "fraction_of_arithmetic_limit"
        ),
        model_copies=info.model_copies,
        peak_memory_bytes=info.peak_memory_bytes,
    )


def _reward_models(infos: Mapping[str, RunInfo]) -> list[RewardModelResult]:
    found = []
    for name, info in infos.items():
        judged = info.facts.get("reward_model")
        if judged is None or judged["accuracy"] is None:
            continue
        annotated = infos.get(info.parents.get("data", ""))
        found.append(
            RewardModelResult(
                stage=name,
                accuracy=Interval.model_validate(judged["accuracy"]),
                unit=judged.get("unit", "pairs"),
                train_pairs=judged["train_pairs"],
                test_pairs=judged["test_pairs"],
                ceiling=annotated.facts.get("test_ceiling") if annotated else None,
            )
        )
    return found


def verdicts(
    policies: list[PolicyResult], reference: str | None, reward_models: list[RewardModelResult]
) -> list[str]:
    """What the numbers say, in sentences: also what they do not show."""
    said = [_accuracy_verdict(result) for result in reward_models]
    for row in policies:
        if row.label == reference:
            continue
        gain, of = (row.gold_gain, "gold") if row.gold_gain else (row.proxy_gain, "proxy")
        if gain is None:
            continue
        if gain.n < 2:  # one prompt has no interval
            said.append(f"{row.label} was measured on one prompt, which says nothing.")
            continue
        change = f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
        if gain.low > 0:
            said.append(f"{row.label} raised the {of} reward over {reference}: {change}.")
        elif gain.high < 0:
            said.append(f"{row.label} lowered the {of} reward below {reference}: {change}.")
        else:
            said.append(
                f"{row.label} did not change the {of} reward of {reference} measurably: {change}; "
                f"the interval holds 0 with {gain.n} prompts."
            )
    return said


def _accuracy_verdict(result: RewardModelResult) -> str:
    share = result.accuracy
    verb = "judges" if result.unit == "steps" else "orders"
    verdict = (
        f"The reward model {result.stage} {verb} {share.mean:.1%} "
        f"[{share.low:.1%}, {share.high:.1%}] of {result.judged} as the annotator did"
    )
    if result.ceiling is not None:
        verdict += f"; knowing the annotator's own scores would give {result.ceiling:.1%}"
    if share.low <= 0.5:
        verdict += ". The interval holds 50 %: do not optimise against it"
    return verdict + "."
