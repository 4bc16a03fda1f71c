"""Our side of a comparison: the objects a recipe's stage is made of, driven step by step."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from bench import floor, switches
from bench.floor import Limit
from bench.job import Job, Row, Setting
from bench.worker import Answer, Channel, Clock
from truing import config
from truing.data.loader import Loader
from truing.groups import TokenGroup
from truing.models import loading
from truing.models.network import Network
from truing.rewards.base import Scores
from truing.rollouts.sampler import sample
from truing.training.build import Built, build
from truing.training.inputs import Inputs
from truing.training.method import resolve
from truing.training.on_policy import sampling_settings
from truing.training.sources import Offline, OnPolicy

METHODS = {"sft": "sft", "reward": "bradley_terry", "dpo": "dpo", "grpo": "grpo"}
TRAINS = {"sft": "policy", "reward": "reward", "dpo": "policy", "grpo": "policy"}
CHECKED_TOKENS = 16
"""Greedy tokens that both sides must agree on before sampling is timed."""


def even_ids(groups: Sequence[TokenGroup]) -> Scores:
    """How many token ids of each completion are even: a reward that costs nothing and that tells
    completions apart even where all have the same length. `trl_side._grpo` has the same one."""
    completions = [completion for group in groups for completion in group.completions]
    return Scores([float(sum(token % 2 == 0 for token in c.ids)) for c in completions])


def knobs(job: Job, setting: Setting) -> dict[str, Any]:
    """The stage's keys: one micro-batch a step, and TRL's trainer settings in our words."""
    common = {
        "method": METHODS[job.work],
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0.0,
        "batch_size": job.batch * job.completions,
        "micro_batch_tokens": 2**20,
    }
    if setting.reference == "cached":
        common["reference_logps"] = "cached"
    if job.work != "grpo":
        return common
    return common | {
        "beta": 0.0,
        "reward": "even_ids",
        "num_generations": job.completions,
        "max_completion_length": job.max_completion_length,
        "rollout_batch_size": job.batch,
        "num_rollouts": 2**20,
    }


def built(job: Job, setting: Setting) -> Built:
    """The stage, ready to run, as pipeline/stages/train.py makes it."""
    groups = before_shuffling([row.group(job.work) for row in job.rows], job.seed)
    return build(
        resolve("bench", knobs(job, setting), "bench"),
        Inputs(
            source=job.folder,
            revision=None,
            model=config.Model.model_validate(
                {"path": job.folder, "device": job.device, "dtype": setting.precision}
            ),
            stop_id=job.stop_id,
            train=groups,
            heldout=[],
            demonstrations=[],
            reward_run=None,
            shares_trunk=False,
            reward=even_ids if job.work == "grpo" else None,
            on_rollout=lambda index, rollout: None,
            seed=job.seed,
            where="bench",
        ),
    )


def serve(job: Job, setting: Setting, channel: Channel) -> None:
    """Answer commands until there are none."""
    if setting.without:
        switches.OFF[setting.without]()
    if job.work == "sample":
        _serve_samples(job, setting, channel)
        return
    stage = built(job, setting)
    steps = steps_of(job, stage)
    channel.loaded(ids=[row.ids for row in job.rows], precision=_name(stage.dtype))
    channel.command()  # "warm"
    channel.answer(steps[0]())

    def run() -> list[Answer]:
        return [step() for step in steps]

    def limit(answers: list[Answer]) -> Limit:
        drawn = [ids for answer in answers for ids in answer["drawn"]] if job.work == "grpo" else ()
        reads = setting.reference == "online" and job.work == "dpo"
        trains = TRAINS[job.work]
        return floor.limit(job, stage.roles.policy, trains, drawn, reference=reads)

    def turn() -> Answer:
        clock = Clock(job.device)
        answers = run()
        return _totals(answers, clock.lap())

    _answer_all(job, channel, turn, run, limit)


def _answer_all(
    job: Job,
    channel: Channel,
    turn: Callable[[], Answer],
    run: Callable[[], Any],
    limit: Callable[[Any], Limit],
) -> None:
    """A timed run for every "run"; for "split" one more under the profiler, and its floor."""
    while (command := channel.command()) in ("run", "split"):
        if command == "run":
            channel.answer(turn())
            continue
        result, seconds, times = floor.profiled(run, job.device)
        least = limit(result)
        channel.answer(
            {
                "floor_seconds": least.seconds,
                "matmul_flops_per_second": least.rate,
                "flops": dataclasses.asdict(least.flops),
                "split": floor.split(seconds, times, least),
            }
        )


def steps_of(job: Job, stage: Built) -> list[Callable[[], Answer]]:
    """The optimizer steps of a run, each with all that it needs: packing, reference, rollout."""
    source, seeds = stage.source, itertools.count(job.seed)

    def offline(groups: Sequence[TokenGroup]) -> Answer:
        assert isinstance(source, Offline)
        metrics = stage.step(source.batches(groups), {})
        tokens = sum(group.length for group in groups)
        return {"metrics": metrics, "units": len(groups), "tokens": tokens}

    def on_policy(rows: Sequence[Row]) -> Answer:
        assert isinstance(source, OnPolicy)
        rollout = source.collector.collect([row.group("grpo") for row in rows], next(seeds))
        metrics: dict[str, float] = {}
        for minibatch in rollout.minibatches:
            metrics = stage.step(minibatch, rollout.metrics)
        drawn = _by_prompt(rows, rollout.groups)
        return {
            "metrics": metrics,
            "units": sum(map(len, drawn)),
            "tokens": sum(len(ids) for group in drawn for ids in group),
            "drawn": drawn,
        }

    if isinstance(source, Offline):
        return [functools.partial(offline, groups) for groups in source.loader.epoch(0)]
    return [functools.partial(on_policy, rows) for rows in job.batches()]


def before_shuffling(groups: Sequence[TokenGroup], seed: int) -> list[TokenGroup]:
    """The groups so arranged that the loader's first epoch hands them out as they are here."""
    order = next(Loader(range(len(groups)), len(groups), seed).epoch(0))
    arranged = dict(zip(order, groups, strict=True))
    return [arranged[place] for place in range(len(groups))]


def _by_prompt(rows: Sequence[Row], groups: Sequence[TokenGroup]) -> list[list[tuple[int, ...]]]:
    """The completions of each row, whatever order the rollout has."""
    drawn = {group.prompt_ids: [c.ids for c in group.completions] for group in groups}
    return [drawn[row.ids[0]] for row in rows]


def _ids(groups: Sequence[TokenGroup]) -> list[list[tuple[int, ...]]]:
    return [[completion.ids for completion in group.completions] for group in groups]


def _totals(answers: Sequence[Answer], seconds: float) -> Answer:
    return {
        "seconds": seconds,
        "units": sum(answer["units"] for answer in answers),
        "tokens": sum(answer["tokens"] for answer in answers),
    }


def _serve_samples(job: Job, setting: Setting, channel: Channel) -> None:
    device = loading.pick_device(job.device)
    dtype = loading.compute_dtype(setting.precision, device)
    network = Network(loading.load_causal(job.folder, dtype)).requires_grad_(False).to(device)
    prompts = [row.group("sample") for row in job.rows]
    channel.loaded(ids=[row.ids for row in job.rows], precision=_name(dtype))
    channel.command()  # "warm"
    likeliest = greedy(job, prompts[:4], network)
    runs = draws(job, network, prompts)
    next(runs)  # untimed, like the other side's, and over before either side's turn
    channel.answer({"greedy": likeliest})

    def turn() -> Answer:
        clock = Clock(job.device)
        drawn = next(runs)
        tokens = sum(len(ids) for group in drawn for ids in group)
        return {"seconds": clock.lap(), "units": sum(map(len, drawn)), "tokens": tokens}

    def limit(drawn: list[list[tuple[int, ...]]]) -> Limit:
        return floor.limit(job, network, "policy", drawn)

    _answer_all(job, channel, turn, lambda: next(runs), limit)


def greedy(job: Job, prompts: Sequence[TokenGroup], network: Network) -> list[list[int]]:
    """The likeliest continuation of each prompt."""
    sampling = config.Sampling(max_completion_length=CHECKED_TOKENS, temperature=0.0)
    drawn = sample(network, prompts, sampling_settings(sampling, job.stop_id), seed=0)
    return [list(group.completions[0].ids) for group in drawn]


def draws(
    job: Job, network: Network, prompts: Sequence[TokenGroup]
) -> Iterator[list[list[tuple[int, ...]]]]:
    """All completions of the job, with another seed each time."""
    count = len(job.rows) * job.completions
    sampling = config.Sampling(
        max_completion_length=job.max_completion_length, sampling_batch_size=count
    )
    settings = sampling_settings(sampling, job.stop_id)
    for seed in range(job.seed, 2**31):
        yield _ids(sample(network, prompts, settings, completions=job.completions, seed=seed))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
