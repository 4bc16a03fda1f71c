"""What on-policy training is made of: sampling settings, and the collector of rollouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from truing import config
from truing.batch import Batch
from truing.data.loader import Loader
from truing.errors import DataError
from truing.groups import TokenGroup
from truing.models.roles import Roles
from truing.rollouts.collect import Collector, ScoreNormalizer
from truing.rollouts.engines.base import SamplingSettings
from truing.rollouts.sampler import sample
from truing.training.inputs import Inputs
from truing.training.meter import Meter
from truing.training.method import Method


def sampling_settings(
    sampling: config.Sampling,
    stop_id: int,
    decode: Callable[[Sequence[int]], str] | None = None,
) -> SamplingSettings:
    """The recipe's sampling fields, for the sampler. Stop sequences need `decode`."""
    return SamplingSettings(
        max_completion_length=sampling.max_completion_length,
        temperature=sampling.temperature,
        batch_size=sampling.sampling_batch_size,
        stop_id=stop_id,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        stop=tuple(sampling.stop),
        decode=decode,
        engine=sampling.engine,
    )


def make_collector(
    method: Method,
    training: config.OnPolicy,
    inputs: Inputs,
    roles: Roles,
    place: Callable[[Batch], Batch],
    device: torch.device,
    meter: Meter,
) -> Collector:
    settings = sampling_settings(training, inputs.stop_id, inputs.readable)
    per_prompt = training.num_generations
    assert method.credit is not None

    def draw(prompts: Sequence[TokenGroup], seed: int) -> list[TokenGroup]:
        return meter.drawing(
            lambda: sample(roles.policy, prompts, settings, completions=per_prompt, seed=seed)
        )

    @torch.no_grad()
    def measure(batch: Batch) -> tuple[Tensor, Tensor]:
        meter.add("forward", batch)
        outputs = roles.outputs(batch, method.objective.trains, method.objective.extra_outputs)
        assert outputs.logps_N is not None
        values_N = outputs.values_N
        return outputs.logps_N, torch.zeros_like(outputs.logps_N) if values_N is None else values_N

    def reference_logps(batch: Batch) -> Tensor:
        meter.add("reference", batch)
        return roles.reference_logps(batch)

    def network_score(batch: Batch, _: Sequence[TokenGroup]) -> Tensor:
        meter.add("reward", batch, logits=False)
        return roles.reward_scores(batch)

    def draw_greedy(prompts: Sequence[TokenGroup]) -> list[TokenGroup]:
        greedy = replace(settings, temperature=0.0)
        return meter.drawing(lambda: sample(roles.policy, prompts, greedy, seed=0))

    return Collector(
        draw=draw,
        measure=measure,
        reference_logps=reference_logps,
        score=inputs.reward or network_score,
        normalize=ScoreNormalizer(training.score_normalization == "reference"),
        credit=method.credit,
        batch_size=training.batch_size,
        micro_batch_tokens=training.micro_batch_tokens,
        device=device,
        place=place,
        draw_greedy=draw_greedy,
        dynamic_rounds=training.dynamic_rounds if training.dynamic_sampling else 0,
        demonstrations=_demonstrations(method, training, inputs),
    )


def _demonstrations(
    method: Method, training: config.OnPolicy, inputs: Inputs
) -> Iterator[list[TokenGroup]] | None:
    """What stands beside each minibatch, for objectives that keep learning from rows."""
    if "demonstration_C" not in method.objective.required:
        return None
    if not inputs.demonstrations:
        raise DataError(
            "ptx_coef needs demonstrations, and these rows are prompts only",
            where=inputs.where,
            remedy="give rows with completions, or set ptx_coef to 0",
        )
    per_step = training.demonstrations_per_step
    return Loader(inputs.demonstrations, per_step, inputs.seed).forever()
