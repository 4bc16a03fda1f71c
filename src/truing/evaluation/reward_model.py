"""A reward model against pairs it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from truing.batch import Batch
from truing.data.packing import micro_batches, pack
from truing.errors import NumericsError
from truing.evaluation.intervals import wilson_interval
from truing.evaluation.summary import Interval
from truing.groups import TokenGroup


@torch.no_grad()
def judge_pairs(
    scores_of: Callable[[Batch], Tensor], pairs: Sequence[TokenGroup], token_budget: int
) -> tuple[Interval, list[dict[str, Any]]]:
    """Share of pairs with score(chosen) > score(rejected), Wilson interval; and every score.

    A tie counts as wrong. Raises NumericsError if all scores are the same: such a model would
    teach nothing, and every stage after it would look at noise.
    """
    rows: list[dict[str, Any]] = []
    for part in micro_batches(pairs, token_budget):
        batch = pack(part)
        scores_C = scores_of(batch).float().cpu()
        chosen = scores_C[batch["chosen_G"]].tolist()
        rejected = scores_C[batch["rejected_G"]].tolist()
        rows += [
            {"where": group.where, "chosen_score": c, "rejected_score": r}
            for group, c, r in zip(part, chosen, rejected, strict=True)
        ]
    scores = [row[name] for row in rows for name in ("chosen_score", "rejected_score")]
    if max(scores) - min(scores) < 1e-6:
        raise NumericsError(
            f"the reward model gives every completion the score {scores[0]:.4g}",
            where="after training it",
            remedy="train longer or with a higher learning_rate, and look at the pairs",
        )
    right = sum(row["chosen_score"] > row["rejected_score"] for row in rows)
    return wilson_interval(right, len(rows)), rows
