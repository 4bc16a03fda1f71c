"""What on-policy training is made of: sampling settings, and the collector of rollouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from truing import config
from truing.batch import Batch, Metric, Outputs, mean_of
from truing.data.loader import Supply
from truing.data.packing import micro_batches, pack
from truing.errors import NumericsError
from truing.groups import GroupType, TokenGroup
from truing.memory import Memory
from truing.models.mixture import Mixture
from truing.models.network import Network
from truing.models.roles import Roles
from truing.ops import kl_k1, segment_sum
from truing.rewards.base import Scores
from truing.rollouts.collect import Collector, Scorer
from truing.rollouts.engines.base import SamplingSettings
from truing.rollouts.kl_control import KLController
from truing.rollouts.normalize import ScoreNormalizer
from truing.rollouts.opponents import Against
from truing.rollouts.sampler import sample
from truing.training.arrange import arrange
from truing.training.inputs import Inputs
from truing.training.meter import Meter
from truing.training.method import Method
from truing.training.online import Draw, Online


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
    memory: Memory,
) -> Collector:
    """What makes rollouts, out of the networks of the stage and its knobs."""
    settings = sampling_settings(training, inputs.stop_id, inputs.readable)
    per_prompt = training.num_generations
    assert method.credit is not None

    def outputs_of(batch: Batch) -> Outputs:
        return roles.outputs(batch, method.objective.trains, method.objective.extra_outputs)

    @torch.no_grad()
    def measure(batch: Batch) -> tuple[Tensor, Tensor]:
        meter.add("forward", batch)
        outputs = Outputs.joined(memory.in_parts(outputs_of, batch))
        assert outputs.logps_N is not None
        values_N = outputs.values_N
        return outputs.logps_N, torch.zeros_like(outputs.logps_N) if values_N is None else values_N

    def reference_logps(batch: Batch) -> Tensor:
        meter.add("reference", batch)
        return torch.cat(memory.in_parts(roles.reference_logps, batch))

    def draw_greedy(prompts: Sequence[TokenGroup]) -> list[TokenGroup]:
        greedy = replace(settings, temperature=0.0)
        return meter.drawing(lambda: sample(roles.policy, prompts, greedy, seed=0, memory=memory))

    return Collector(
        draw=_drawing(roles.policy, settings, per_prompt, meter, memory),
        measure=measure,
        reference_logps=reference_logps,
        score=_compared(training, inputs, roles, device, meter, memory),
        normalize=ScoreNormalizer(training.score_normalization),
        credit=method.credit,
        kl_controller=KLController(
            training.kl_control,
            method.credit.kl_coef,
            target=training.kl_target or math.nan,
            horizon=training.kl_horizon,
        ),
        importance_correction=training.importance_correction,
        importance_cap=training.importance_cap,
        logp_difference_limit=training.logp_difference_limit,
        critic_rollouts=getattr(training, "critic_warmup_rollouts", 0),
        fit_critic=roles.rescale_critic if _starts_as_reward(training) else None,
        batch_size=training.batch_size,
        micro_batch_tokens=training.micro_batch_tokens,
        device=device,
        place=place,
        draw_greedy=draw_greedy,
        dynamic_rounds=training.dynamic_rounds if training.dynamic_sampling else 0,
        demonstrations=_demonstrations(method, training, inputs),
    )


def make_online(
    method: Method,
    training: config.Online,
    inputs: Inputs,
    roles: Roles,
    complete: Callable[[Batch, Sequence[TokenGroup]], Batch],
    device: torch.device,
    meter: Meter,
    memory: Memory,
) -> Online:
    """The source of rows that the policy makes itself."""
    settings = sampling_settings(training, inputs.stop_id, inputs.readable)
    per_prompt, needs, rule = training.num_generations, method.objective.required, method.curation
    assert rule is not None

    @torch.no_grad()
    def drift(groups: Sequence[TokenGroup]) -> Metric:
        """Σ log π − log ref of the first completion of each group: none was selected yet."""
        found = []
        firsts = [replace(group, completions=group.completions[:1]) for group in groups]
        for part in micro_batches(firsts, training.micro_batch_tokens):
            batch = complete(pack(part), part)
            meter.add("forward", batch)
            logps_N = roles.outputs(batch, method.objective.trains).logps_N
            assert logps_N is not None
            ratio_N = kl_k1(logps_N, batch["reference_logps_N"])
            found.append(segment_sum(ratio_N, batch.completion_N, batch.size_C))
        return mean_of(torch.cat(found))

    return Online(
        prompts=inputs.train,
        draw=_drawing(roles.policy, settings, per_prompt, meter, memory),
        score=inputs.reward or _network_score(training, roles, device, meter, memory),
        curation=rule,
        arrange=lambda rows, seed: _learnable(rows, rule.makes, needs, seed),
        complete=complete,
        on_rollout=inputs.on_rollout,
        prompts_per_rollout=training.rollout_batch_size,
        completions_per_prompt=per_prompt,
        rollouts=training.num_rollouts,
        batch_size=training.batch_size,
        micro_batch_tokens=training.micro_batch_tokens,
        epochs=training.num_train_epochs,
        seed=inputs.seed,
        max_steps=training.max_steps,
        drift=drift if method.reads_reference else None,
        draw_reference=_opponent(roles, settings, per_prompt, 1.0, meter, memory)
        if rule.draws_from_reference
        else None,
        missing_eos_penalty=training.missing_eos_penalty,
        sync_reference=lambda: roles.move_reference(1.0),
        sync_every=training.sync_reference_rollouts,
    )


def _drawing(
    network: Network, settings: SamplingSettings, number: int, meter: Meter, memory: Memory
) -> Draw:
    """What draws `number` completions of each prompt from a network, timed and counted."""

    def draw(prompts: Sequence[TokenGroup], seed: int) -> list[TokenGroup]:
        return meter.drawing(
            lambda: sample(network, prompts, settings, completions=number, seed=seed, memory=memory)
        )

    return draw


def _starts_as_reward(training: config.OnPolicy) -> bool:
    return isinstance(training, config.ActorCritic) and training.critic == "reward"


def _learnable(
    rows: Sequence[TokenGroup], kind: GroupType, needs: frozenset[str], seed: int
) -> list[TokenGroup]:
    """Rows as the objective learns from them; none where ties left those of one prompt, and it
    compares with the completions of others."""
    if "mismatched_C" in needs and len({row.prompt_ids for row in rows}) < 2:
        return []
    return arrange(rows, kind, needs, seed)


def _compared(
    training: config.OnPolicy,
    inputs: Inputs,
    roles: Roles,
    device: torch.device,
    meter: Meter,
    memory: Memory,
) -> Scorer:
    """The reward, compared with an opponent's where that is asked for."""
    score = inputs.reward or _network_score(training, roles, device, meter, memory)
    if not training.opponents:
        return score
    settings = sampling_settings(training, inputs.stop_id, inputs.readable)
    draw = _opponent(roles, settings, training.opponents, training.opponent_mixture, meter, memory)
    return Against(score, draw, training.opponent_score, inputs.seed)


def _opponent(
    roles: Roles,
    settings: SamplingSettings,
    number: int,
    mixture: float,
    meter: Meter,
    memory: Memory,
) -> Draw:
    """What draws from the reference, or from its mixture with the policy."""

    def draw(prompts: Sequence[TokenGroup], seed: int) -> list[TokenGroup]:
        if mixture < 1:
            mixed: Any = Mixture(roles.policy, roles.as_reference, mixture)
            # generate would draw from the policy alone
            own = replace(settings, engine="local")
            return _drawing(mixed, own, number, meter, memory)(prompts, seed)
        with roles.as_reference() as network:
            return _drawing(network, settings, number, meter, memory)(prompts, seed)

    return draw


def _network_score(
    training: config.Rollouts, roles: Roles, device: torch.device, meter: Meter, memory: Memory
) -> Scorer:
    """The reward model of the roles, as a scorer."""

    def score(groups: Sequence[TokenGroup]) -> Scores:
        found: dict[int, list[float]] = {}
        for part in micro_batches(groups, training.micro_batch_tokens):
            batch = pack(part).to(device)
            meter.add("reward", batch, logits=False)
            scores_C = torch.cat(memory.in_parts(roles.reward_scores, batch))
            if not bool(torch.isfinite(scores_C).all()):
                raise NumericsError(
                    f"the reward model scores {int((~torch.isfinite(scores_C)).sum())} completions "
                    "of a rollout with what is no finite number",
                    where=f"objective/scores, reward {training.reward}",
                    remedy="try dtype=float32, and evaluate the reward model by itself; nothing "
                    "was learnt from this rollout",
                )
            numbers = iter(scores_C.tolist())
            for group in part:
                found[id(group)] = [next(numbers) for _ in group.completions]
        return Scores([number for group in groups for number in found[id(group)]])

    return score


def _demonstrations(
    method: Method, training: config.OnPolicy, inputs: Inputs
) -> Supply[TokenGroup] | None:
    """What stands beside each minibatch, for objectives that keep learning from rows."""
    if "demonstration_C" not in method.objective.required:
        return None
    per_step = training.demonstrations_per_step
    return Supply(inputs.demonstrations, per_step, inputs.seed)
