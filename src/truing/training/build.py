"""The composition root: recipe sections become objects.

`build` loads the networks an objective's declarations ask for (networks.py) and wires them into a
step and a source (on_policy.py). Only these three modules know all classes. (Reading a stage's
keys, which loads nothing, is method.py.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig

from truing import config
from truing.batch import Batch, Outputs
from truing.groups import TokenGroup
from truing.memory import Memory
from truing.models import loading
from truing.models.checkpointing import checkpoint_layers
from truing.models.roles import Roles, is_of_critic
from truing.training import contract
from truing.training.averaging import WeightAverage
from truing.training.best import Best, is_greater_better
from truing.training.guards import FrozenWeights, frozen_tensors
from truing.training.inputs import Inputs
from truing.training.loop import measure
from truing.training.meter import Meter
from truing.training.method import Method
from truing.training.networks import networks
from truing.training.on_policy import make_collector, make_online
from truing.training.optim import MasterWeights, make_optimizer, make_schedule
from truing.training.reference_cache import ReferenceLogps, reference_logps
from truing.training.sources import Offline, OnPolicy, Source
from truing.training.step import Step


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
    frozen: FrozenWeights
    """What training must not change."""
    average: WeightAverage | None = None
    """The weights the stage leaves behind, where they are not the last ones."""
    best: Best | None = None
    """The same, where they are those that measured best."""

    def measure(self) -> dict[str, float]:
        """Held-out numbers; the last ones are those of an average that is left behind."""
        if self.average is not None and self.step.taken == self.source.total_steps:
            self.average.adopt()
        measured = measure(self.step, self.heldout)
        if self.best is not None:
            self.best.follow(self.step.taken, measured)
        return measured

    def settle(self) -> None:
        """Put the weights that the stage leaves behind in the place of the last ones."""
        if self.average is not None:
            self.average.adopt()
        if self.best is not None:
            self.best.adopt()


def build(method: Method, inputs: Inputs) -> Built:
    """Networks, optimizer, step and source of one stage."""
    training, objective = method.training, method.objective
    device = loading.pick_device(inputs.model.device)
    dtype = loading.compute_dtype(inputs.model.dtype, device)
    roles, lora = networks(method, inputs, device, dtype)
    trainable = roles.trainable(objective.trains)
    if training.gradient_checkpointing:
        for network in roles.networks:
            checkpoint_layers(network.trunk)
    masters = MasterWeights(trainable)
    notes: list[str] = []
    meter, memory = Meter(), Memory(say=notes.append)

    def place(batch: Batch) -> Batch:
        placed = roles.placed(batch, device, memory)
        if "frozen_TH" in placed:
            meter.add("frozen", placed, logits=False)
        return placed

    complete = _Complete(place, "reference_logps_N" in objective.required, roles, meter, memory)
    source = _source(method, inputs, roles, complete, device, meter)
    heldout: list[Batch] = []
    if isinstance(training, config.Offline) and isinstance(source, Offline):
        measured = inputs.heldout[: training.eval_rows]
        if method.caches_reference:
            parts = [*source.first_epoch(), *source.parts(measured)]
            complete.cached = reference_logps(parts, roles, device, memory)
            notes.append(complete.cached.note)
        heldout = source.batches(measured)
    average = None if training.ema_decay is None else WeightAverage(masters, training.ema_decay)
    step = _step(method, inputs, roles, masters, source, meter, memory)
    moving = _moving_reference(method, roles, heldout, memory)
    step.after_update += [] if moving is None else [moving]
    step.after_update += [] if average is None else [average.follow]
    frozen = FrozenWeights([*frozen_tensors(roles, reference_moves=method.moves_reference)])
    best = _best(training, masters, inputs.where)
    return Built(
        step, source, roles, lora, heldout, device, dtype, meter, notes, frozen, average, best
    )


def _best(training: config.Training, masters: MasterWeights, where: str) -> Best | None:
    """What keeps the weights that measured best, if the stage asks for them."""
    if not isinstance(training, config.Offline) or training.metric_for_best_model is None:
        return None
    metric = training.metric_for_best_model
    return Best(masters, metric, is_greater_better(metric, training.greater_is_better), where)


def _step(
    method: Method,
    inputs: Inputs,
    roles: Roles,
    masters: MasterWeights,
    source: Source,
    meter: Meter,
    memory: Memory,
) -> Step:
    """The optimizer, its schedule and what must hold before its first update."""
    training, objective = method.training, method.objective
    optimizer = make_optimizer(masters, training.learning_rate, training.weight_decay)

    def compute(batch: Batch) -> Outputs:
        kind = "train" if torch.is_grad_enabled() else "forward"
        meter.add(kind, batch, logits=objective.trains != "reward")
        if roles.has_own_critic:
            meter.add(kind, batch, logits=False)
        return roles.outputs(batch, objective.trains, objective.extra_outputs)

    def before_first_update(metrics: dict[str, float], batches: Sequence[Batch]) -> None:
        dtype = next(roles.policy.parameters()).dtype
        rounding = contract.ROUNDING.get(dtype, 0.0) if memory.too_large is not None else 0.0
        contract.check_numbers(method.step_zero, metrics, inputs.where, rounding)
        if not method.step_zero:
            smallest = min(batches, key=lambda batch: batch.size_T)
            contract.check_alone(step.measured, smallest, dtype, inputs.where)
        silent = all("advantages_N" in b and not b["advantages_N"].any() for b in batches)
        contract.check_gradients(masters.gradients(), roles.networks, inputs.where, silent=silent)

    def critic_alone() -> bool:
        if not isinstance(training, config.ActorCritic) or not isinstance(source, OnPolicy):
            return False
        return source.rollout < training.critic_warmup_rollouts

    steps = source.total_steps
    if isinstance(training, config.ActorCritic) and isinstance(source, OnPolicy):
        steps -= training.critic_warmup_rollouts * source.steps_per_rollout

    step = Step(
        objective=objective,
        compute=compute,
        masters=masters,
        optimizer=optimizer,
        schedule=make_schedule(optimizer, training.lr_scheduler_type, steps, training.warmup_ratio),
        max_grad_norm=training.max_grad_norm,
        before_first_update=before_first_update,
        critic_names=frozenset(n for n in masters.masters if is_of_critic(n)),
        critic_alone=critic_alone,
        max_nonfinite_steps=training.max_nonfinite_steps,
        memory=memory,
    )
    return step


@dataclass(slots=True)
class _Complete:
    """A batch of rows on the device, with the reference's log-probs if the objective reads them."""

    place: Callable[[Batch], Batch]
    """Onto the device, with what all passes over the batch have in common."""
    reads_reference: bool
    roles: Roles
    meter: Meter
    memory: Memory
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
            logps_N = torch.cat(self.memory.in_parts(self.roles.reference_logps, batch))
        return batch.with_columns(reference_logps_N=logps_N)


def _moving_reference(
    method: Method, roles: Roles, heldout: list[Batch], memory: Memory
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
            reread_reference(roles, heldout, memory)

    return follow


def reread_reference(roles: Roles, heldout: list[Batch], memory: Memory) -> None:
    """Held-out batches with the log-probs of the reference there is now, in their places."""
    heldout[:] = [
        batch.with_columns(
            reference_logps_N=torch.cat(memory.in_parts(roles.reference_logps, batch))
        )
        for batch in heldout
    ]


def _source(
    method: Method,
    inputs: Inputs,
    roles: Roles,
    complete: _Complete,
    device: torch.device,
    meter: Meter,
) -> Source:
    training = method.training
    if isinstance(training, config.Online):
        return make_online(
            method, training, inputs, roles, complete, device, meter, complete.memory
        )
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
    collector = make_collector(
        method, training, inputs, roles, complete.place, device, meter, complete.memory
    )
    source = OnPolicy(
        prompts=inputs.train,
        collector=collector,
        on_rollout=inputs.on_rollout,
        prompts_per_rollout=training.rollout_batch_size,
        completions_per_prompt=training.num_generations,
        rollouts=training.num_rollouts,
        epochs=training.num_train_epochs,
        seed=inputs.seed,
        max_steps=training.max_steps,
        approxkl_limit=training.approxkl_limit,
    )
    if collector.kl_controller is not None:  # max_steps may end the run before all rollouts
        rollouts = -(-source.total_steps // source.steps_per_rollout)
        collector.kl_controller.rollouts = max(1, rollouts - collector.critic_rollouts)
    return source
