"""The loop: every method's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from truing.batch import Batch, combine
from truing.errors import RolloutError
from truing.rundir import RunDirectory
from truing.training.meter import Meter
from truing.training.sources import Source
from truing.training.step import Step

Evaluate = Callable[[], dict[str, float]]
Tick = Callable[[int, int, Mapping[str, float]], None]


def train(
    step: Step,
    source: Source,
    run: RunDirectory,
    tick: Tick,
    meter: Meter,
    evaluate: Evaluate | None = None,
) -> int:
    """Take every step of the source; append its metrics; tell the progress bar. Returns tokens.

    With `evaluate`, held-out numbers are measured before the first step, halfway and at the end.
    `meter` is started anew, and stopped at the end.
    Raises RolloutError when no rollout left anything to learn from.
    """
    total = source.total_steps
    tokens = 0
    meter.restart()
    started = time.perf_counter()
    if evaluate is not None:
        run.append_metrics(0, meter.aside(evaluate))
    for work in source:
        if not work.micro_batches:
            run.append_metrics(step.taken, work.metrics | meter.lap(time.perf_counter() - started))
            continue
        metrics = step(work.micro_batches, work.metrics)
        source.observe(metrics)
        number = step.taken
        tokens += sum(batch.size_T for batch in work.micro_batches)
        if evaluate is not None and number in (-(-total // 2), total):
            metrics |= meter.aside(evaluate)
        seconds = time.perf_counter() - started
        metrics |= {"tokens": tokens, "seconds": round(seconds, 3)} | meter.lap(seconds)
        run.append_metrics(number, metrics)
        tick(number, total, metrics)
    meter.lap(time.perf_counter() - started)
    if not step.taken:
        raise RolloutError(
            "no step was taken: no rollout left anything to learn from",
            remedy="where completions are cut, raise max_completion_length or turn off "
            "overlong_filter; where scores are equal, raise temperature or num_generations, or "
            "ask less (min_gap, threshold)",
        )
    return tokens


@torch.no_grad()
def measure(step: Step, batches: list[Batch]) -> dict[str, float]:
    """The objective's metrics on held-out batches, each name prefixed `eval/`.

    Running means are read, not moved: measuring does not change the run.
    """
    prepared = step.prepared(batches, dict(step.carried))
    collected = [step.objective(batch, step.compute(batch)).metrics for batch in prepared]
    return {f"eval/{name}": value for name, value in combine(collected).items()}
