"""Mean and deviation of each completion's group.

C completions · G groups
"""

from __future__ import annotations

import torch
from torch import Tensor

from truing.batch import Batch
from truing.ops import segment_sum


def group_mean(batch: Batch, values_C: Tensor) -> tuple[Tensor, Tensor]:
    """Size of each completion's group, and the mean of `values_C` in it. Shapes [C].

    Taken above the group's smallest value: the mean of equal numbers is then that number, where
    a plain sum rounds, and division by a deviation of 0 + ε would make a signal of the rounding.
    """
    size_G = segment_sum(torch.ones_like(values_C), batch.group_C, batch.size_G)
    least_G = torch.full_like(size_G, torch.inf).scatter_reduce(0, batch.group_C, values_C, "amin")
    above_C = values_C - least_G[batch.group_C]
    mean_G = least_G + segment_sum(above_C, batch.group_C, batch.size_G) / size_G.clamp(min=1)
    return size_G[batch.group_C], mean_G[batch.group_C]


def group_deviation(batch: Batch, values_C: Tensor) -> Tensor:
    """Standard deviation (n − 1) of each completion's group; 0 for a group of one. Shape [C]."""
    size_C, mean_C = group_mean(batch, values_C)
    squares_C = (values_C - mean_C).square()
    sum_G = segment_sum(squares_C, batch.group_C, batch.size_G)
    return (sum_G[batch.group_C] / (size_C - 1).clamp(min=1)).sqrt()
