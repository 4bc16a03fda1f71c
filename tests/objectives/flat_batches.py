"""Flat batches, by hand or at random, and ways to cut, reorder and repeat them.

Objectives and credit read only completion_N, group_C and columns, so the tokens are blank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from truing.batch import Batch, Outputs

INDICES = ("chosen_G", "rejected_G")
FLAGS = ("finished_C", "label_C")


def make_batch(
    lengths: Sequence[int],
    groups: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float64,
    **columns: Any,
) -> Batch:
    """Completions of these lengths; by default each is a group of its own."""
    completion_N = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    blank_RT = torch.zeros(1, len(completion_N) + 1, dtype=torch.long)
    index_N = torch.arange(len(completion_N))
    group_C = torch.tensor(list(groups if groups is not None else range(len(lengths))))
    batch = Batch(
        blank_RT, blank_RT, blank_RT, blank_RT, index_N, index_N + 1, completion_N, group_C
    )
    kinds = dict.fromkeys(INDICES, torch.long) | dict.fromkeys(FLAGS, torch.bool)
    return batch.with_columns(
        **{name: torch.as_tensor(v, dtype=kinds.get(name, dtype)) for name, v in columns.items()}
    )


def leaf(values: Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
    """What a model would give: a tensor that takes a gradient."""
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def random_batch(
    needs: frozenset[str], seed: int = 0, groups: int = 5, dtype: torch.dtype = torch.float64
) -> tuple[Batch, Outputs]:
    """A batch with exactly the columns of `needs`, and every output.

    Groups have 1 to 3 completions, or 2 where there are pairs; they lie in no order. The policy
    and the values have drifted enough from the sampled ones for clipping to bite.
    """
    g = torch.Generator().manual_seed(seed)
    pairs = "chosen_G" in needs
    sizes = torch.full((groups,), 2) if pairs else torch.randint(1, 4, (groups,), generator=g)
    group_C = torch.repeat_interleave(torch.arange(groups), sizes)
    group_C = group_C[torch.randperm(len(group_C), generator=g)]
    lengths = torch.randint(1, 6, (len(group_C),), generator=g).tolist()
    n, c = sum(lengths), len(lengths)

    def noise(size: int, scale: float) -> Tensor:
        return scale * torch.randn(size, generator=g, dtype=dtype)

    logps_N, values_N = -noise(n, 1.5).abs(), noise(n, 1.0)
    members = (
        torch.stack([torch.nonzero(group_C == i).flatten()[:2].flip(0) for i in range(groups)])
        if pairs
        else torch.zeros(groups, 2, dtype=torch.long)
    )
    swap_G = torch.randint(0, 2, (groups,), generator=g)
    offered = {
        "chosen_G": members.gather(1, swap_G[:, None]).flatten(),
        "rejected_G": members.gather(1, 1 - swap_G[:, None]).flatten(),
        "label_C": torch.randint(0, 2, (c,), generator=g).bool(),
        "finished_C": torch.randint(0, 2, (c,), generator=g).bool(),
        "sampled_logps_N": logps_N + noise(n, 0.4),
        "reference_logps_N": logps_N + noise(n, 0.6),
        "scores_C": noise(c, 1.0),
        "values_N": values_N + noise(n, 0.4),
        "advantages_N": noise(n, 1.0),
        "returns_N": noise(n, 1.0),
    }
    batch = make_batch(lengths, group_C.tolist(), dtype, **{k: offered[k] for k in needs})
    return batch, Outputs(logps_N, noise(n, 1.0).abs(), values_N, noise(c, 1.0))


def all_columns(batch: Batch, value: float) -> dict[str, Tensor]:
    """Every column the batch does not have, filled with `value`, or with an index out of range."""
    from truing.batch import COLUMNS

    sizes = {"N": len(batch.completion_N), "C": batch.size_C, "G": batch.size_G, "S": 2}
    filled = {
        name: torch.full((sizes[name[-1]],) if name[-2:-1] == "_" else (), value)
        for name in COLUMNS
        if name not in batch
    }
    return {
        k: v.new_full(v.shape, -99, dtype=torch.long) if k in INDICES else v
        for k, v in filled.items()
    }


def take(batch: Batch, outputs: Outputs, groups: Sequence[int]) -> tuple[Batch, Outputs]:
    """These groups, in this order, as a batch of their own; a group may come more than once."""
    blocks = [torch.nonzero(batch.group_C == group).flatten() for group in groups]
    rows_C = torch.cat(blocks)
    rows_N = torch.cat([torch.nonzero(batch.completion_N == row).flatten() for row in rows_C])
    starts = torch.tensor([0] + [len(block) for block in blocks]).cumsum(0)

    def part(name: str, values: Tensor) -> Tensor:
        if name in INDICES:
            return torch.stack(
                [
                    starts[i] + torch.nonzero(block == values[groups[i]]).squeeze()
                    for i, block in enumerate(blocks)
                ]
            )
        return values[{"N": rows_N, "C": rows_C, "G": torch.tensor(groups)}[name[-1]]]

    taken = make_batch(
        batch.lengths_C[rows_C].tolist(),
        [i for i, block in enumerate(blocks) for _ in block],
    ).with_columns(**{name: part(name, v) for name, v in batch.columns.items()})
    parts = {f.name: getattr(outputs, f.name) for f in fields(outputs)}
    return taken, Outputs(**{k: None if v is None else part(k, v) for k, v in parts.items()})
