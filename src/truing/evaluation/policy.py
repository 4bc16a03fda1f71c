"""A policy on prompts it has not seen: what it writes and how far it went from the reference.

N predicted tokens · C completions
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from truing.batch import Batch
from truing.data.packing import micro_batches, pack
from truing.groups import TokenGroup
from truing.memory import Memory
from truing.ops import kl_k1, segment_sum

TOKEN_BUDGET = 2048


@torch.no_grad()
def per_completion(
    groups: Sequence[TokenGroup], value_C: Callable[[Batch], Tensor], memory: Memory | None = None
) -> list[float]:
    """One number per completion, in the order of `groups`, computed in packed micro-batches, and
    in smaller ones where memory runs out. Raises ResourceError if a single group does not fit."""
    memory = memory or Memory()
    place = {id(group): index for index, group in enumerate(groups)}
    found: dict[int, list[float]] = {}
    for part in micro_batches(groups, TOKEN_BUDGET):
        found_C = torch.cat(memory.in_parts(value_C, pack(part)))
        values = found_C.float().cpu().tolist()
        for group in part:
            count = len(group.completions)
            found[place[id(group)]], values = values[:count], values[count:]
    return [value for index in range(len(groups)) for value in found[index]]


def sequence_kl(
    groups: Sequence[TokenGroup],
    policy_logps: Callable[[Batch], Tensor],
    reference_logps: Callable[[Batch], Tensor],
    memory: Memory | None = None,
) -> list[float]:
    """Σ_n log π(y_n) − log ref(y_n) of each completion: its mean estimates KL(π‖ref). Nats.

    The groups must have been drawn from π at the temperature the log-probs are taken at; then
    the mean over completions is unbiased. Single values may be negative.
    """

    def kl_C(batch: Batch) -> Tensor:
        k1_N = kl_k1(policy_logps(batch), reference_logps(batch))
        return segment_sum(k1_N, batch.completion_N, batch.size_C)

    return per_completion(groups, kl_C, memory)
