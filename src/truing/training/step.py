"""The step: forward, loss, backward over micro-batches; divide once; clip; update."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from truing.batch import Batch, Loss, Metric, Outputs, combine
from truing.errors import NumericsError
from truing.memory import Memory, attempted
from truing.objectives.base import Objective, WholeStep
from truing.training.optim import MasterWeights

NOTHING = "nothing to average over"
"""Why a step is skipped whose batches hold no unit of the loss."""
Compute = Callable[[Batch], Outputs]


@dataclass(slots=True)
class Step:
    """One optimizer step of any objective."""

    objective: Objective
    compute: Compute
    """Batch -> outputs of the network that learns."""
    masters: MasterWeights
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    max_grad_norm: float
    before_first_update: Callable[[dict[str, float], Sequence[Batch]], None]
    """The step-0 contract; called once, with the first metrics and batches, gradients in place."""
    after_update: list[Callable[[int], None]] = field(default_factory=list)
    """Each called with the number of steps taken, once the weights have moved."""
    critic_names: frozenset[str] = frozenset()
    """Masters of the critic."""
    critic_alone: Callable[[], bool] = lambda: False
    """Whether only they learn in the step at hand."""
    max_nonfinite_steps: int = 0
    """So many steps whose numbers are not finite are skipped; the next one is an error."""
    memory: Memory = field(default_factory=Memory)
    taken: int = 0
    """Steps so far, skipped ones included: how far in the data and on the schedule the run is."""
    first_metrics: dict[str, float] = field(default_factory=dict)
    carried: dict[str, Tensor] = field(default_factory=dict)
    """What the objective keeps from step to step (running means); state of the run."""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    """Steps that changed nothing: their number, why, and their rows; state of the run."""

    def measured(self, batch: Batch) -> Outputs:
        """What the network says of a batch now, without gradients."""
        with torch.no_grad():
            return Outputs.joined(self.memory.in_parts(self.compute, batch))

    def prepared(self, batches: Sequence[Batch], carried: dict[str, Tensor]) -> list[Batch]:
        """The batches with what the objective must know of all of them at once."""
        whole = WholeStep(list(batches), self.measured, carried, self.taken)
        return self.objective.prepare(whole)

    def __call__(
        self,
        micro_batches: Sequence[Batch],
        known: Mapping[str, float],
        rows: Sequence[str] = (),
    ) -> dict[str, float]:
        """Update once on all micro-batches together; `known` metrics are added to its own.

        A step with nothing to average over, and within `max_nonfinite_steps` one whose numbers are
        not finite, leaves weights, moments and running means as they were, and is written down in
        `skipped` with its `rows`. Raises NumericsError before a bad update, ResourceError if a
        single group does not fit.
        """
        before, alone = dict(self.carried), self.critic_alone()
        collected, weight = self._gradients(self.prepared(micro_batches, self.carried))
        metrics = dict(known) | combine(collected)
        if not weight:
            return self._skip(NOTHING, dict(known), before, rows)
        # The objective returned sums: this one division makes accumulation change nothing.
        self.masters.scale_gradients(1.0 / weight)
        norm = self.masters.norm()
        bad = _not_finite(metrics | {"grad_norm": float(norm)})
        if bad is not None:
            self._refuse_non_finite(*bad)
            return self._skip(f"{bad[0]} is {bad[1]}", metrics, before, rows)
        if not self.first_metrics:
            self.before_first_update(metrics, micro_batches)
            self.first_metrics = dict(metrics)
        if alone:
            self.masters.drop_gradients(but=self.critic_names)
            norm = self.masters.norm()
        torch.nn.utils.clip_grads_with_norm_(
            self.masters.masters.values(), self.max_grad_norm, norm
        )
        metrics["grad_norm"] = float(norm)
        metrics["learning_rate"] = self._set_learning_rate(alone)
        self.optimizer.step()
        if not alone:
            self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.masters.publish()
        self.taken += 1
        for follow in self.after_update:
            follow(self.taken)
        return metrics | self._memory_metrics()

    def _gradients(self, batches: Sequence[Batch]) -> tuple[list[dict[str, Metric]], float]:
        """Gradients of the sums over all batches are collected; their metrics and summed weight.

        Where one does not fit, its halves take its place and all begins anew: the pass that broke
        off has left gradients among those of the batches before it.
        """
        waiting = parts = self.memory.divided(batches)
        collected: list[dict[str, Metric]] = []
        weight = 0.0
        while waiting:
            loss = attempted(lambda batch=waiting[0]: self._backward(batch))  # type: ignore[misc]
            if loss is None:
                self.masters.clear_gradients()
                place = len(parts) - len(waiting)
                parts = [*parts[:place], *self.memory.halves(waiting[0]), *parts[place + 1 :]]
                waiting, collected, weight = parts, [], 0.0
                continue
            weight += loss.weight
            collected.append(loss.metrics)
            waiting = waiting[1:]
        return collected, weight

    def _backward(self, batch: Batch) -> Loss:
        """The loss of one micro-batch, its gradients collected."""
        loss = self.objective(batch, self.compute(batch))
        loss.total.backward()  # type: ignore[no-untyped-call]
        self.masters.collect()
        return loss._replace(total=loss.total.detach())

    def _set_learning_rate(self, alone: bool) -> float:
        """The schedule is the policy's, and waits for it: a critic alone learns at the peak."""
        groups = self.optimizer.param_groups
        now = [g["initial_lr"] for g in groups] if alone else self.schedule.get_last_lr()
        for group, rate in zip(groups, now, strict=True):
            group["lr"] = rate
        return float(now[0])

    def _refuse_non_finite(self, name: str, value: float) -> None:
        """Raises NumericsError once no step may be skipped for this any more."""
        earlier = sum(step["why"] != NOTHING for step in self.skipped)
        if earlier < self.max_nonfinite_steps:
            return
        gradients = self.masters.gradients().items()
        first = next((n for n, g in gradients if g is not None and not g.isfinite().all()), None)
        raise NumericsError(
            f"{name} is {value}"
            + (f" (the gradient of {first} is not finite)" if first else "")
            + (f", after {earlier} steps that were skipped" if earlier else ""),
            where=f"step {self.taken + 1}",
            remedy="lower learning_rate or max_grad_norm, or try dtype=float32; the weights were "
            "not updated with it (max_nonfinite_steps would skip such steps)",
        )

    def _skip(
        self,
        why: str,
        metrics: Mapping[str, float],
        carried: Mapping[str, Tensor],
        rows: Sequence[str],
    ) -> dict[str, float]:
        """Go on without an update: data and schedule move, nothing else does. What is finite of the
        metrics is kept."""
        self.masters.clear_gradients()
        self.carried.clear()
        self.carried.update(carried)
        if not self.critic_alone():
            with warnings.catch_warnings():  # torch expects an update before the schedule moves
                warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
                self.schedule.step()
        self.taken += 1
        self.skipped.append({"step": self.taken, "why": why, "rows": list(rows)})
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        return finite | {"skipped_steps": float(len(self.skipped))} | self._memory_metrics()

    def _memory_metrics(self) -> dict[str, float]:
        halved = self.memory.taken()
        return {"memory/halved": float(halved)} if halved else {}


def _not_finite(metrics: Mapping[str, float]) -> tuple[str, float] | None:
    """The first metric that is no finite number."""
    return next(((n, v) for n, v in metrics.items() if not math.isfinite(v)), None)
