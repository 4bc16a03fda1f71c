"""The weights that measured best, which is what the stage leaves behind if it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from truing.errors import UsageError, suggest
from truing.training.optim import MasterWeights


@dataclass(slots=True)
class Best:
    """A copy of the masters, in float32, as they were at the best measurement of a metric so far.

    The weights that a stage starts from are measured, too: it never leaves worse ones behind.
    Of equal measurements the first one counts.
    """

    masters: MasterWeights
    metric: str
    """Its full name, as in metrics.jsonl."""
    greater_is_better: bool
    where: str
    """The stage, in messages."""
    value: float | None = None
    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def follow(self, taken: int, measured: Mapping[str, float]) -> None:
        """Look at held-out numbers of the weights as they are. Raises UsageError if the metric is
        not among them."""
        if self.metric not in measured:
            raise UsageError(
                f"metric_for_best_model: '{self.metric}' is not measured on held-out rows",
                where=self.where,
                remedy=suggest(self.metric, measured),
            )
        value = measured[self.metric]
        better = self.value is None or (
            value > self.value if self.greater_is_better else value < self.value
        )
        if better:
            self.value, self.step = value, taken
            self.weights = {n: p.detach().clone() for n, p in self.masters.masters.items()}

    @torch.no_grad()
    def adopt(self) -> None:
        """Put the best weights in the place of the last ones, masters and compute copies."""
        for name, kept in self.weights.items():
            self.masters.masters[name].copy_(kept)
        self.masters.publish()


def is_greater_better(metric: str, asked: bool | None) -> bool:
    """As asked; else of a loss less is better, of anything else more."""
    return "loss" not in metric if asked is None else asked
