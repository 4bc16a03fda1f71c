"""What objectives over single verdicts share: which completions count, weights, common metrics.

N predicted tokens · C completions · U completions whose verdict counts
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from truing.batch import Batch, Loss, Metric, Outputs, mean_of
from truing.objectives.base import Objective
from truing.ops import segment_sum


def ratios(batch: Batch, outputs: Outputs) -> Tensor:
    """ρ = log π − log π_ref of each completion, summed over its tokens. Shape [C]."""
    assert outputs.logps_N is not None
    drift_N = outputs.logps_N - batch["reference_logps_N"]
    return segment_sum(drift_N, batch.completion_N, batch.size_C)


def agreement(ratio_U: Tensor, desirable_U: Tensor, shift: Tensor | float) -> Tensor:
    """ρ − shift where desirable, shift − ρ where not: positive where the policy agrees."""
    return torch.where(desirable_U, ratio_U - shift, shift - ratio_U)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """A batch as single completions, each desirable or not."""

    ratio_U: Tensor
    """ρ = log π − log π_ref. Nats."""
    desirable_U: Tensor
    batch: Batch


class VerdictObjective(Objective):
    """An objective over verdicts: subclasses say the loss of each, this weighs and measures."""

    trains = "policy"
    unit = "completions"
    needs = frozenset({"label_C", "reference_logps_N"})
    step_zero = {"rewards/mean": (0.0, 1e-5)}

    beta: float
    desirable_weight: float
    undesirable_weight: float

    @abstractmethod
    def verdict_losses(self, verdicts: Verdicts) -> Tensor:
        """The loss of each verdict, before the weights. Shape [U]."""

    def counted(self, batch: Batch) -> Tensor:
        """Which completions have a verdict to learn from. Shape [C]."""
        return torch.ones_like(batch["label_C"])

    def weigh(self, batch: Batch) -> float:
        return float(self.counted(batch).sum())

    def more_metrics(self, verdicts: Verdicts) -> dict[str, Metric]:
        """What this method measures besides the common metrics."""
        return {}

    def __call__(self, batch: Batch, outputs: Outputs) -> Loss:
        counted_C = self.counted(batch)
        desirable_U = batch["label_C"][counted_C]
        verdicts = Verdicts(ratios(batch, outputs)[counted_C], desirable_U, batch)
        loss_U = self.verdict_losses(verdicts)
        # Python numbers in `where` would be float64 beside float32 losses
        weight_U = torch.where(
            desirable_U,
            loss_U.new_tensor(self.desirable_weight),
            loss_U.new_tensor(self.undesirable_weight),
        )
        loss_U = weight_U * loss_U
        rewards_U = self.beta * verdicts.ratio_U
        metrics = {
            "loss": mean_of(loss_U),
            "rewards/mean": mean_of(rewards_U),
            "rewards/chosen": mean_of(rewards_U[desirable_U]),
            "rewards/rejected": mean_of(rewards_U[~desirable_U]),
        }
        return Loss(loss_U.sum(), self.weigh(batch), metrics | self.more_metrics(verdicts))
