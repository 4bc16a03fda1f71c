"""Flat batches, by hand or at random, and ways to cut, reorder, repeat and prepare them.

Objectives and credit read only completion_N, group_C and columns, so the tokens are blank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from truing.batch import COLUMNS, Batch, Outputs
from truing.objectives.base import Objective, WholeStep

INDICES = tuple(name for name, column in COLUMNS.items() if column.unit == "index")
FLAGS = tuple(name for name, column in COLUMNS.items() if column.unit == "bool")
Part = tuple[Batch, Outputs]


def make_batch(
    lengths: Sequence[int],
    groups: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float64,
    **columns: Any,
) -> Batch:
    """Completions of these lengths; by default each is a group of its own."""
    completion_N = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    blank_T = torch.zeros(len(completion_N) + 1, dtype=torch.long)
    index_N = torch.arange(len(completion_N))
    group_C = torch.tensor(list(groups if groups is not None else range(len(lengths))))
    batch = Batch(blank_T, blank_T, blank_T, blank_T, index_N, index_N + 1, completion_N, group_C)
    kinds = dict.fromkeys(INDICES, torch.long) | dict.fromkeys(FLAGS, torch.bool)
    return batch.with_columns(
        **{name: torch.as_tensor(v, dtype=kinds.get(name, dtype)) for name, v in columns.items()}
    )


def leaf(values: Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
    """What a model would give: a tensor that takes a gradient."""
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def letter(name: str) -> str:
    """The index letter of a column or an output; empty for one number a step."""
    return name[-1] if name[-2:-1] == "_" else ""


def random_batch(
    needs: Iterable[str], seed: int = 0, groups: int = 5, dtype: torch.dtype = torch.float64
) -> Part:
    """A batch with exactly the columns of `needs`, and every output.

    Groups have 2 completions where there are pairs, 2 to 4 where there are scores to compare,
    else 1 to 3; they lie in no order. The policy and the values have drifted enough from the
    sampled ones for clipping to bite.
    """
    needs = set(needs)
    g = torch.Generator().manual_seed(seed)
    low, high = (2, 3) if "chosen_G" in needs else (2, 5) if "scores_C" in needs else (1, 4)
    sizes = torch.randint(low, high, (groups,), generator=g)
    group_C = torch.repeat_interleave(torch.arange(groups), sizes)
    group_C = group_C[torch.randperm(len(group_C), generator=g)]
    lengths = torch.randint(1, 6, (len(group_C),), generator=g).tolist()
    bare = make_batch(lengths, group_C.tolist(), dtype)

    def noise(size: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(size, generator=g, dtype=dtype)

    n, c = bare.size_N, bare.size_C
    said = Outputs(
        logps_N=-noise(n, 1.5).abs(),
        entropy_N=noise(n).abs(),
        values_N=noise(n),
        scores_C=noise(c),
        collision_N=-noise(n).abs(),
    )
    offered = random_columns(bare, said, g)
    outputs = replace(said, scores_S=noise(offered["step_end_S"].numel()))
    return bare.with_columns(**{name: offered[name] for name in sorted(needs)}), outputs


def random_columns(batch: Batch, outputs: Outputs, g: torch.Generator) -> dict[str, Tensor]:
    """Every column that data or rollouts bring, at random, near what the outputs say."""
    logps_N, values_N = outputs.logps_N, outputs.values_N
    assert logps_N is not None
    assert values_N is not None
    n, c, groups = batch.size_N, batch.size_C, batch.size_G

    def noise(size: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(size, generator=g, dtype=logps_N.dtype)

    def coins(size: int) -> Tensor:
        """Both sides come up, wherever there is room for two."""
        return (torch.arange(size) % 2).bool()[torch.randperm(size, generator=g)]

    ends_step_N = torch.rand(n, generator=g) < 0.4
    ends_step_N[batch.last_C] = True
    members = [torch.nonzero(batch.group_C == i).flatten() for i in range(groups)]
    members = [rows[torch.randperm(len(rows), generator=g)] for rows in members]
    return {
        "chosen_G": torch.stack([rows[0] for rows in members]),
        "rejected_G": torch.stack([rows[-1] for rows in members]),
        "margin_G": noise(groups).abs(),
        "probability_G": torch.rand(groups, generator=g, dtype=logps_N.dtype),
        "label_C": coins(c),
        "mismatched_C": coins(c),
        "step_end_S": batch.target_N[ends_step_N],
        "step_label_S": coins(int(ends_step_N.sum())),
        "finished_C": coins(c),
        "demonstration_C": coins(c),
        "sampled_logps_N": logps_N + noise(n, 0.4),
        "reference_logps_N": logps_N + noise(n, 0.6),
        "scores_C": noise(c),
        "baseline_C": noise(c),
        "values_N": values_N + noise(n, 0.4),
        "advantages_N": noise(n),
        "returns_N": noise(n),
        "of_reference_C": coins(c),
    }


def all_columns(batch: Batch, value: float) -> dict[str, Tensor]:
    """Every column the batch does not have, filled with `value`, or with an index out of range."""
    steps = batch["step_label_S"].numel() if "step_label_S" in batch else 2
    sizes = {"N": batch.size_N, "C": batch.size_C, "G": batch.size_G, "S": steps}
    return {
        name: torch.full((sizes[letter(name)],) if letter(name) else (), value)
        if name not in INDICES
        else torch.full((sizes[letter(name)],), -99)
        for name in COLUMNS
        if name not in batch
    }


def take(batch: Batch, outputs: Outputs, groups: Sequence[int]) -> Part:
    """These groups, in this order, as a batch of their own; a group may come more than once."""
    blocks = [torch.nonzero(batch.group_C == group).flatten() for group in groups]
    rows_C = torch.cat(blocks)
    rows_N = torch.cat([torch.nonzero(batch.completion_N == row).flatten() for row in rows_C])
    starts = torch.tensor([0] + [len(block) for block in blocks]).cumsum(0)
    taken = make_batch(
        batch.lengths_C[rows_C].tolist(),
        [i for i, block in enumerate(blocks) for _ in block],
    )
    step_N = torch.full((int(batch.target_N.max()) + 1,), -1)
    if "step_end_S" in batch:
        step_N[batch["step_end_S"]] = torch.arange(batch["step_end_S"].numel())
    step_N = step_N[batch.target_N[rows_N]]  # which step each taken token ends, or -1
    rows = {"N": rows_N, "C": rows_C, "G": torch.tensor(groups), "S": step_N[step_N >= 0]}

    def part(name: str, values: Tensor) -> Tensor:
        if name == "step_end_S":
            return taken.target_N[step_N >= 0]
        if name in INDICES:
            return torch.stack(
                [
                    starts[i] + torch.nonzero(block == values[groups[i]]).squeeze()
                    for i, block in enumerate(blocks)
                ]
            )
        return values[rows[letter(name)]] if letter(name) else values

    taken = taken.with_columns(**{name: part(name, v) for name, v in batch.columns.items()})
    parts = {f.name: getattr(outputs, f.name) for f in fields(outputs)}
    if "step_end_S" not in batch:
        parts["scores_S"] = None
    return taken, Outputs(**{k: None if v is None else part(k, v) for k, v in parts.items()})


def prepare(
    objective: Objective,
    parts: Sequence[Part],
    carried: dict[str, Tensor] | None = None,
    number: int = 0,
) -> list[Part]:
    """The micro-batches of one step, with what the objective adds after a look at all of them."""
    said = {id(batch.completion_N): outputs for batch, outputs in parts}
    step = WholeStep(
        [batch for batch, _ in parts],
        lambda batch: said[id(batch.completion_N)],
        {} if carried is None else carried,
        number,
    )
    return list(zip(objective.prepare(step), (said for _, said in parts), strict=True))
