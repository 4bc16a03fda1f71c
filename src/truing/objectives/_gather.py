"""For objectives that must know the whole step: gather over its batches, hand the results back.

Nothing here depends on how a step is cut into micro-batches. What is carried from step to step is
replaced in the dictionary, never changed in place, so whoever copied the dictionary keeps the old.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from truing.batch import Batch, Outputs
from truing.objectives.base import WholeStep


def gather(step: WholeStep, read: Callable[[Batch, Outputs], Tensor]) -> Tensor:
    """What `read` says of each batch, joined along the last dimension; detached."""
    return torch.cat([read(batch, step.compute(batch)).detach() for batch in step.batches], dim=-1)


def hand_out(batches: Sequence[Batch], **columns: Tensor) -> list[Batch]:
    """Each batch with its slice of the columns over pairs, and all of the other columns."""
    given = list(batches)
    for name, values in columns.items():
        shares: Sequence[Tensor] = [values] * len(given)
        if name.endswith("_G"):
            shares = torch.split(values, [batch["chosen_G"].numel() for batch in given])
        given = [b.with_columns(**{name: share}) for b, share in zip(given, shares, strict=True)]
    return given


def running_mean(step: WholeStep, values: Tensor) -> Tensor:
    """Mean of every value of every step so far, this one's included. A number."""
    count = step.carried.get("count", torch.tensor(0)) + values.numel()
    mean = step.carried.get("mean", values.new_zeros(()))
    mean = mean + (values - mean).sum() / count
    step.carried |= {"count": count, "mean": mean}
    return mean


def moving_average(step: WholeStep, name: str, value: Tensor, momentum: float) -> Tensor:
    """m·(what it was) + (1 − m)·value; in a first step the value itself. A number."""
    before = step.carried.get(name, value)
    step.carried[name] = momentum * before + (1 - momentum) * value
    return step.carried[name]
