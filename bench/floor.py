"""Where the time of our side goes: the arithmetic limit, and what each part takes above it.

The floor is planning/flops.py's operations at the measured rate of this model's own products.
Times of parts come from one profiled run: every operator belongs to the outermost part that
called it. The parts sum up to the run, because `rest` is what is left.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from bench.job import Job
from truing.models.network import Network
from truing.planning import flops
from truing.planning.flops import Flops, Work
from truing.rollouts.choosing import Chooser
from truing.rollouts.slots import Slots
from truing.training.meter import model_sizes
from truing.training.speed import measured_matmul_rate, shapes

PARTS: Mapping[str, re.Pattern[str]] = {
    "attention": re.compile(r"_Attention|scaled_dot_product|decoding attention"),
    "logits": re.compile(r"LogProbs|choosing tokens"),
    "optimizer": re.compile(r"^Optimizer\.step"),
    "linear": re.compile(r"^aten::(linear|matmul|mm|addmm)$"),
}
"""Part -> the operators it starts with, in the order they are looked for."""


class Limit(NamedTuple):
    """Operations of one run, and how many a second this machine does of them."""

    flops: Flops
    rate: float

    @property
    def seconds(self) -> float:
        return self.flops.total / self.rate


def limit(
    job: Job,
    network: Network,
    trains: str,
    drawn: Sequence[Sequence[Sequence[int]]] = (),
    *,
    reference: bool = False,
) -> Limit:
    """The least that one run of the job takes. `drawn` are the completions of each prompt, where
    the run drew them; `reference`: whether its log-probs are computed in the run."""
    sizes = model_sizes(network, trains)
    prompts = [len(row.ids[0]) for row in job.rows]
    total, trained = Flops(), Work()
    if drawn:
        lengths = [[len(ids) for ids in group] for group in drawn]
        sampled = [flops.sampling_work(p, c) for p, c in zip(prompts, lengths, strict=True)]
        total += flops.forward(sizes, sum(sampled, Work()))
    if job.work != "sample":
        answers = lengths if drawn else [_answers(job, i) for i in range(len(job.rows))]
        work = [flops.group_work(p, c) for p, c in zip(prompts, answers, strict=True)]
        trained = sum(work, Work())
        if trains == "reward":  # a head of one output: no logits
            trained = Work(trained.tokens, 0, trained.pairs)
        total += flops.training(sizes, trained)
        total += flops.reference(sizes, trained) if reference else Flops()
    parameter = next(network.parameters())
    # while drawing, a product has as many rows as there are completions: the better rate of
    # training's long products is the one that nobody gets above
    rows = trained.tokens // job.steps or sum(prompts)
    products = shapes(network, rows, trained.predicted // job.steps)
    return Limit(total, measured_matmul_rate(parameter.dtype, parameter.device, products))


def _answers(job: Job, index: int) -> list[int]:
    return [len(completion.ids) for completion in job.rows[index].group(job.work).completions]


def profiled(run: Callable[[], Any], device: str) -> tuple[Any, float, dict[str, float]]:
    """What one run under the profiler returns, its seconds, and those of each part of it."""
    cuda = torch.device(device).type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if cuda else []
    with _named(), torch.profiler.profile(activities=activities) as profile:
        started = time.perf_counter()
        result = run()
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return result, seconds, times_of(profile.events() or [], on_device=cuda)


@contextmanager
def _named() -> Iterator[None]:
    """Inside, the parts of decoding stand in the profile under names of their own."""
    parts = ((Slots, "__call__", "decoding attention"), (Chooser, "__call__", "choosing tokens"))
    before = [getattr(kind, method) for kind, method, _ in parts]
    for (kind, method, name), plain in zip(parts, before, strict=True):
        setattr(kind, method, torch.profiler.record_function(name)(plain))
    try:
        yield
    finally:
        for (kind, method, _), plain in zip(parts, before, strict=True):
            setattr(kind, method, plain)


def times_of(events: Iterable[Any], *, on_device: bool = False) -> dict[str, float]:
    """Seconds by part, from the profiler's events; what lies within a part is not counted again."""
    found = dict.fromkeys(PARTS, 0.0)
    for event in events:
        part = part_of(event.name)
        if part is None or _has_part(event.cpu_parent):
            continue
        microseconds = event.device_time_total if on_device else event.cpu_time_total
        found[part] += microseconds / 1e6
    return found


def part_of(name: str) -> str | None:
    """The part an operator stands for by its name, if any."""
    if name.startswith("autograd::"):
        return None  # the engine's wrapper: the function itself follows
    return next((part for part, pattern in PARTS.items() if pattern.search(name)), None)


def _has_part(event: Any) -> bool:
    while event is not None:
        if part_of(event.name) is not None:
            return True
        event = event.cpu_parent
    return False


def split(seconds: float, times: Mapping[str, float], floor: Limit) -> dict[str, float]:
    """A run's seconds by where they went; the values sum up to `seconds`.

    The floor is one value; every other is what lies above it. Padding and repeated prompts are
    0 by construction: a batch is flat and holds each prompt once.
    """
    head = floor.flops.head / floor.rate
    under = {
        "linear": floor.flops.linear / floor.rate + (0.0 if times["logits"] else head),
        "attention": floor.flops.attention / floor.rate,
        "logits": head if times["logits"] else 0.0,
    }
    above = {part: times[part] - under[part] for part in ("linear", "attention", "logits")}
    parts = {
        "arithmetic floor": floor.seconds,
        "padding": 0.0,
        "repeated prompt": 0.0,
        **{f"{part} above its floor": value for part, value in above.items()},
        "optimizer": times["optimizer"],
    }
    return {**parts, "rest": seconds - sum(parts.values())}
