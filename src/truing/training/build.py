"""The composition root: recipe sections become objects. The only module that knows all classes.

`build` loads the networks an objective's declarations ask for and wires them into a step and a
source. (Reading a stage's keys, which loads nothing, is method.py.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from truing import config
from truing.batch import Batch, Outputs
from truing.data.loader import Loader
from truing.errors import DataError, UsageError
from truing.groups import TokenGroup
from truing.models import loading
from truing.models.checkpointing import checkpoint_layers
from truing.models.heads import new_score_head, new_value_head
from truing.models.network import Network
from truing.models.roles import Roles, attach_reward_adapter, load_reward_network
from truing.rollouts.collect import Collector, Rollout, ScoreNormalizer, Scorer
from truing.rollouts.engines.base import SamplingSettings
from truing.rollouts.sampler import sample
from truing.training import contract
from truing.training.meter import Meter
from truing.training.method import Method
from truing.training.optim import MasterWeights, make_optimizer, make_schedule
from truing.training.reference_cache import ReferenceLogps, reference_logps
from truing.training.sources import Offline, OnPolicy, Source
from truing.training.step import Step


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a training stage is given by the pipeline."""

    source: str
    """The model to start from, as loading.resolve gave it."""
    revision: str | None
    model: config.Model
    stop_id: int
    train: Sequence[TokenGroup]
    heldout: Sequence[TokenGroup]
    demonstrations: Sequence[TokenGroup]
    """What an on-policy objective with ptx_coef keeps learning; others never see it."""
    reward_run: Path | None
    """Run directory of the reward model, if a stage made it."""
    shares_trunk: bool
    """Whether that reward model is an adapter on the very weights in `source`."""
    reward: Scorer | None
    """A reward that is no network of ours."""
    on_rollout: Callable[[int, Rollout], None]
    seed: int
    where: str
    readable: Callable[[Sequence[int]], str] | None = None
    """Ids -> text, for stop sequences."""


@dataclass(slots=True)
class Built:
    """A training stage, ready to run."""

    step: Step
    source: Source
    roles: Roles
    lora: LoraConfig | None
    heldout: list[Batch]
    device: torch.device
    dtype: torch.dtype
    meter: Meter
    """Counts what the step and the source compute; the loop starts it."""
    notes: list[str]
    """What the user should be told before training."""


def build(method: Method, inputs: Inputs) -> Built:
    """Networks, optimizer, step and source of one stage."""
    training, objective = method.training, method.objective
    device = loading.pick_device(inputs.model.device)
    dtype = loading.compute_dtype(inputs.model.dtype, device)
    roles, lora = _roles(method, inputs, device, dtype)
    trainable = roles.policy.trainable(objective.trains)
    if training.gradient_checkpointing:
        checkpoint_layers(roles.policy.trunk)
    masters = MasterWeights(trainable)
    meter = Meter()

    def compute(batch: Batch) -> Outputs:
        kind = "train" if torch.is_grad_enabled() else "forward"
        meter.add(kind, batch, logits=objective.trains != "reward")
        return roles.outputs(batch, objective.trains, objective.extra_outputs)

    def place(batch: Batch) -> Batch:
        placed = roles.placed(batch, device)
        if "frozen_TH" in placed:
            meter.add("frozen", placed, logits=False)
        return placed

    complete = _Complete(place, "reference_logps_N" in objective.required, roles, meter)
    source = _source(method, inputs, roles, complete, device, meter)
    optimizer = make_optimizer(masters, training.learning_rate, training.weight_decay)

    def before_first_update(metrics: dict[str, float], batches: Sequence[Batch]) -> None:
        contract.check_numbers(method.step_zero, metrics, inputs.where)
        silent = all("advantages_N" in b and not b["advantages_N"].any() for b in batches)
        contract.check_gradients(masters.gradients(), [roles.policy], inputs.where, silent=silent)

    heldout: list[Batch] = []
    notes: list[str] = []
    if isinstance(training, config.Offline) and isinstance(source, Offline):
        measured = inputs.heldout[: training.eval_rows]
        if _caches_reference(method):
            parts = [*source.first_epoch(), *source.parts(measured)]
            complete.cached = reference_logps(parts, roles, device)
            notes.append(complete.cached.note)
        heldout = source.batches(measured)
    step = Step(
        objective=objective,
        compute=compute,
        masters=masters,
        optimizer=optimizer,
        schedule=make_schedule(
            optimizer, training.lr_scheduler_type, source.total_steps, training.warmup_ratio
        ),
        max_grad_norm=training.max_grad_norm,
        before_first_update=before_first_update,
        after_update=_moving_reference(method, roles, heldout),
    )
    return Built(step, source, roles, lora, heldout, device, dtype, meter, notes)


@dataclass(slots=True)
class _Complete:
    """A batch of rows on the device, with the reference's log-probs if the objective reads them."""

    place: Callable[[Batch], Batch]
    """Onto the device, with what all passes over the batch have in common."""
    reads_reference: bool
    roles: Roles
    meter: Meter
    cached: ReferenceLogps | None = None
    """What was computed before training; None: they are computed with each batch."""

    def __call__(self, batch: Batch, groups: Sequence[TokenGroup]) -> Batch:
        batch = self.place(batch)
        if not self.reads_reference:
            return batch
        if self.cached is not None:
            logps_N = self.cached.of(groups).to(batch.tokens_T.device)
        else:
            self.meter.add("reference", batch)
            logps_N = self.roles.reference_logps(batch)
        return batch.with_columns(reference_logps_N=logps_N)


def _caches_reference(method: Method) -> bool:
    training = method.training
    return isinstance(training, config.Offline) and training.reference_logps == "cached"


def _moving_reference(
    method: Method, roles: Roles, heldout: list[Batch]
) -> Callable[[int], None] | None:
    """Every sync_steps the reference takes a step towards the policy, if the objective says so.

    Held-out batches are then measured against the reference there is, too.
    """
    if not method.objective.moves_reference:
        return None
    knobs = method.knobs

    def follow(taken: int) -> None:
        if taken % knobs["sync_steps"] == 0:
            roles.move_reference(knobs["mixup_alpha"])
            heldout[:] = [
                batch.with_columns(reference_logps_N=roles.reference_logps(batch))
                for batch in heldout
            ]

    return follow


def lora_config(model: config.Model, transformer: Any) -> LoraConfig | None:
    """The recipe's adapters in peft's terms; dropout stays off, as every ratio needs."""
    if model.lora is None:
        return None
    layers: int = transformer.config.num_hidden_layers
    last = model.lora.last_layers
    if last is not None and last > layers:
        raise UsageError(
            f"model.lora.last_layers is {last}, the model has {layers} layers",
            remedy=f"give at most {layers}, or null for all",
        )
    targets: str | list[str] = model.lora.target_modules
    if targets == "all-linear" and last is not None:
        targets = _linear_names(transformer)
    return LoraConfig(
        r=model.lora.rank,
        lora_alpha=model.lora.alpha,
        target_modules=targets,
        layers_to_transform=None if last is None else list(range(layers - last, layers)),
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=transformer.config.model_type == "gpt2",
    )


def _linear_names(transformer: Any) -> list[str]:
    """Names of the linear layers inside the decoder layers: all-linear, spelt out."""
    head = transformer.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in transformer.named_modules()
            if type(module).__name__ in ("Linear", "Conv1D") and module is not head
        }
    )


def _roles(
    method: Method, inputs: Inputs, device: torch.device, dtype: torch.dtype
) -> tuple[Roles, LoraConfig | None]:
    """The networks that the objective's declarations ask for, and no more."""
    objective = method.objective
    transformer = loading.load_causal(inputs.source, dtype, inputs.revision)
    lora = lora_config(inputs.model, transformer)
    size: int = transformer.config.hidden_size
    policy = Network(
        transformer,
        lora=lora,
        score_head=new_score_head(size, inputs.seed) if objective.trains == "reward" else None,
        value_head=new_value_head(size) if objective.trains == "policy+value" else None,
    )
    needs_reference = "reference_logps_N" in objective.required or method.credit is not None
    reference_copy = None
    if _caches_reference(method):
        needs_reference = False  # before its first update the policy itself says what is kept
    if needs_reference and (lora is None or objective.moves_reference):
        reference_copy = Network(loading.load_causal(inputs.source, dtype, inputs.revision))
        reference_copy.requires_grad_(False).to(device)
    reward_copy = None
    if inputs.reward_run is not None:
        if lora is not None and inputs.shares_trunk:
            attach_reward_adapter(policy, inputs.reward_run, dtype)
        else:
            reward_copy = load_reward_network(inputs.reward_run, dtype)
            reward_copy.requires_grad_(False).to(device)
    temperature = getattr(method.training, "temperature", 1.0)
    if method.credit is not None and temperature == 0:
        raise UsageError(
            "temperature: 0 draws one completion for ever: on-policy training needs variety",
            where=inputs.where,
            remedy="set temperature above 0",
        )
    policy.to(device)
    return Roles(policy, reference_copy, reward_copy, temperature=temperature), lora


def _source(
    method: Method,
    inputs: Inputs,
    roles: Roles,
    complete: _Complete,
    device: torch.device,
    meter: Meter,
) -> Source:
    training = method.training
    if method.credit is None:
        return Offline(
            groups=inputs.train,
            complete=complete,
            batch_size=training.batch_size,
            micro_batch_tokens=training.micro_batch_tokens,
            epochs=training.num_train_epochs,
            seed=inputs.seed,
            max_steps=training.max_steps,
        )
    assert isinstance(training, config.OnPolicy)
    return OnPolicy(
        prompts=inputs.train,
        collector=_collector(method, training, inputs, roles, complete.place, device, meter),
        on_rollout=inputs.on_rollout,
        prompts_per_rollout=training.rollout_batch_size,
        completions_per_prompt=training.num_generations,
        rollouts=training.num_rollouts,
        epochs=training.num_train_epochs,
        seed=inputs.seed,
        max_steps=training.max_steps,
    )


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


def _collector(
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
