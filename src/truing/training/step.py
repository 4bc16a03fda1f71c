"""The step: forward, loss, backward over micro-batches; divide once; clip; update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from truing.batch import Batch, Metric, Outputs, combine
from truing.errors import NumericsError
from truing.objectives.base import Objective, WholeStep
from truing.training.optim import MasterWeights

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
    taken: int = 0
    first_metrics: dict[str, float] = field(default_factory=dict)
    carried: dict[str, Tensor] = field(default_factory=dict)
    """What the objective keeps from step to step (running means); state of the run."""

    def prepared(self, batches: Sequence[Batch], carried: dict[str, Tensor]) -> list[Batch]:
        """The batches with what the objective must know of all of them at once."""
        whole = WholeStep(list(batches), torch.no_grad()(self.compute), carried, self.taken)
        return self.objective.prepare(whole)

    def __call__(
        self, micro_batches: Sequence[Batch], known: Mapping[str, float]
    ) -> dict[str, float]:
        """Update once on all micro-batches together; `known` metrics are added to its own.

        Raises NumericsError before a bad update.
        """
        collected: list[dict[str, Metric]] = []
        weight = 0.0
        for batch in self.prepared(micro_batches, self.carried):
            loss = self.objective(batch, self.compute(batch))
            loss.total.backward()  # type: ignore[no-untyped-call]
            self.masters.collect()
            weight += loss.weight
            collected.append(loss.metrics)
        metrics = dict(known) | combine(collected)
        # The objective returned sums: this one division makes accumulation change nothing.
        self.masters.scale_gradients(1.0 / weight)
        if self.taken == 0:
            self.before_first_update(metrics, micro_batches)
            self.first_metrics = dict(metrics)
        alone = self.critic_alone()
        if alone:
            self.masters.drop_gradients(but=self.critic_names)
        norm = torch.nn.utils.clip_grad_norm_(self.masters.masters.values(), self.max_grad_norm)
        metrics["grad_norm"] = float(norm)
        metrics["learning_rate"] = self._set_learning_rate(alone)
        self._refuse_non_finite(metrics)
        self.optimizer.step()
        if not alone:
            self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.masters.publish()
        self.taken += 1
        for follow in self.after_update:
            follow(self.taken)
        return metrics

    def _set_learning_rate(self, alone: bool) -> float:
        """The schedule is the policy's, and waits for it: a critic alone learns at the peak."""
        groups = self.optimizer.param_groups
        now = [g["initial_lr"] for g in groups] if alone else self.schedule.get_last_lr()
        for group, rate in zip(groups, now, strict=True):
            group["lr"] = rate
        return float(now[0])

    def _refuse_non_finite(self, metrics: dict[str, float]) -> None:
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise NumericsError(
                f"{bad[0]} is {metrics[bad[0]]}",
                where=f"step {self.taken + 1}",
                remedy="lower learning_rate or max_grad_norm, or try dtype=float32; "
                "the weights were not updated with it",
            )
