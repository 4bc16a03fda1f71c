"""What objectives over scored lists share: segment-wise softmax, ordered pairs, common metrics.

C completions · G groups, each a list of K completions of one prompt · I, J indices of a pair
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from truing.batch import Batch, Loss, Outputs, mean_of
from truing.objectives.base import Objective
from truing.ops import segment_sum


def segment_log_softmax(values_C: Tensor, group_C: Tensor, groups: int) -> Tensor:
    """log softmax of the values within each group. Shape [C]."""
    lowest_G = values_C.new_full((groups,), -torch.inf)
    top_G = lowest_G.scatter_reduce(0, group_C, values_C.detach(), "amax")
    shifted_C = values_C - top_G[group_C]
    return shifted_C - segment_sum(shifted_C.exp(), group_C, groups).log()[group_C]


def ordered_pairs(scores_C: Tensor, group_C: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (better, worse) of every pair of one group whose scores differ."""
    same_CC = group_C[:, None] == group_C
    better_I, worse_J = torch.nonzero(same_CC & (scores_C[:, None] > scores_C), as_tuple=True)
    return better_I, worse_J


@dataclass(frozen=True, slots=True)
class Lists:
    """A batch as scored lists."""

    rewards_C: Tensor
    """The implicit reward r̂ = β (log π − log π_ref), summed over tokens."""
    scores_C: Tensor
    """The given reward."""
    group_C: Tensor
    groups: int

    @property
    def sizes_C(self) -> Tensor:
        """K, the length of the list each completion stands in."""
        return torch.bincount(self.group_C, minlength=self.groups)[self.group_C]

    def log_softmax(self, values_C: Tensor) -> Tensor:
        """log softmax of the values within each list."""
        return segment_log_softmax(values_C, self.group_C, self.groups)


class ListObjective(Objective):
    """An objective over scored lists: subclasses say what each completion adds."""

    trains = "policy"
    unit = "groups"
    needs = frozenset({"scores_C", "reference_logps_N"})
    step_zero = {"rewards/mean": (0.0, 1e-5)}

    beta: float

    @abstractmethod
    def list_losses(self, lists: Lists) -> Tensor:
        """What each completion adds. Shape [C]."""

    def __call__(self, batch: Batch, outputs: Outputs) -> Loss:
        assert outputs.logps_N is not None
        drift_N = outputs.logps_N - batch["reference_logps_N"]
        rewards_C = self.beta * segment_sum(drift_N, batch.completion_N, batch.size_C)
        lists = Lists(rewards_C, batch["scores_C"], batch.group_C, batch.size_G)
        loss_G = segment_sum(self.list_losses(lists), batch.group_C, batch.size_G)
        better_I, worse_J = ordered_pairs(lists.scores_C, batch.group_C)
        margins = rewards_C[better_I] - rewards_C[worse_J]
        metrics = {
            "loss": mean_of(loss_G),
            "rewards/mean": mean_of(rewards_C),
            "rewards/margins": mean_of(margins),
            "rewards/accuracies": mean_of((margins > 0).float()),
        }
        return Loss(loss_G.sum(), self.weigh(batch), metrics)
