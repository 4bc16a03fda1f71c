"""The loop: every method's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from truing.batch import Batch, combine
from truing.errors import NumericsError, RolloutError
from truing.memory import memory_errors
from truing.rundir import RunDirectory
from truing.training.keeper import Keeper
from truing.training.meter import Meter
from truing.training.sources import Source
from truing.training.step import Step

Evaluate = Callable[[], dict[str, float]]
Tick = Callable[[int, int, Mapping[str, float]], None]


@dataclass(slots=True)
class Progress:
    """What the loop itself goes on from."""

    tokens: int = 0
    seconds: float = 0.0
    """Of training, earlier sessions of the same run included."""


def train(
    step: Step,
    source: Source,
    run: RunDirectory,
    tick: Tick,
    meter: Meter,
    evaluate: Evaluate | None = None,
    keeper: Keeper | None = None,
    progress: Progress | None = None,
    eval_steps: int | None = None,
) -> Progress:
    """Take every step that the source has left; append its metrics; keep what is to be kept.

    With `evaluate`, held-out numbers are measured before the first step, at the end, and every
    `eval_steps` or once halfway.
    `meter` is started anew, and stopped at the end. Without a keeper nothing is kept. Returns
    `progress`, moved on.
    Raises RolloutError when no rollout left anything to learn from, NumericsError when not one step
    could be taken, ResourceError when memory runs out where nothing can be halved.
    """
    keeper, progress = keeper or Keeper(), progress or Progress()
    with memory_errors("training", "lower micro_batch_tokens or sampling_batch_size, turn on "
                       "gradient_checkpointing, or train an adapter (model.lora)"):  # fmt: skip
        _train(step, source, run, tick, meter, evaluate, keeper, progress, eval_steps)
    if not step.taken:
        raise RolloutError(
            "no step was taken: no rollout left anything to learn from",
            remedy="where completions are cut, raise max_completion_length or turn off "
            "overlong_filter; where scores are equal, raise temperature or num_generations, or "
            "ask less (min_gap, threshold)",
        )
    if step.taken == len(step.skipped):
        last = step.skipped[-1]
        raise NumericsError(
            f"not one of {step.taken} steps could be taken: {last['why']}",
            where=f"step {last['step']}",
            remedy="try dtype=float32, a lower learning_rate, and look at the rows of these steps",
        )
    return progress


def _train(
    step: Step,
    source: Source,
    run: RunDirectory,
    tick: Tick,
    meter: Meter,
    evaluate: Evaluate | None,
    keeper: Keeper,
    progress: Progress,
    eval_steps: int | None,
) -> None:
    """The loop itself."""
    total, earlier = source.total_steps, progress.seconds
    measured_every = eval_steps or -(-total // 2)
    meter.restart()
    started = time.perf_counter()
    if evaluate is not None and not step.taken:
        run.append_metrics(0, meter.aside(evaluate))
    with keeper.watching(step.taken):
        for work in source:
            seconds = time.perf_counter() - started
            if not work.micro_batches:
                run.append_metrics(step.taken, work.metrics | meter.lap(seconds))
                continue
            with keeper.step():
                skipped = len(step.skipped)
                metrics = step(work.micro_batches, work.metrics, work.rows)
                if len(step.skipped) == skipped:
                    source.observe(metrics)
                number = step.taken
                progress.tokens += sum(batch.size_T for batch in work.micro_batches)
                if evaluate is not None and (number % measured_every == 0 or number == total):
                    metrics |= meter.aside(evaluate)
                seconds = time.perf_counter() - started
                progress.seconds = earlier + seconds
                metrics |= {"tokens": progress.tokens, "seconds": round(progress.seconds, 3)}
                metrics |= meter.lap(seconds)
                run.append_metrics(number, metrics)
            tick(number, total, metrics)
            keeper.between(number)
    meter.lap(time.perf_counter() - started)


@torch.no_grad()
def measure(step: Step, batches: list[Batch]) -> dict[str, float]:
    """The objective's metrics on held-out batches, each name prefixed `eval/`.

    Running means are read, not moved: measuring does not change the run.
    """
    prepared = step.prepared(batches, dict(step.carried))
    collected = [step.objective(batch, step.measured(batch)).metrics for batch in prepared]
    return {f"eval/{name}": value for name, value in combine(collected).items()}
