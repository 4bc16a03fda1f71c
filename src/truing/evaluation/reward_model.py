"""A reward model against rows it has not seen: pairs, scored lists, or judged steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch

from truing.batch import Batch, Outputs
from truing.data.packing import micro_batches, pack
from truing.errors import NumericsError
from truing.evaluation.intervals import share_interval, wilson_interval
from truing.evaluation.summary import Interval
from truing.groups import TokenGroup


class Verdict(NamedTuple):
    """How often a reward model is right, and every score behind it."""

    accuracy: Interval | None
    """None where nothing was asked: lists of equals have no order."""
    unit: Literal["pairs", "lists", "steps"]
    """What the accuracy is over."""
    rows: list[dict[str, Any]]


@torch.no_grad()
def judge(
    compute: Callable[[Batch], Outputs], groups: Sequence[TokenGroup], token_budget: int
) -> Verdict:
    """Accuracy on held-out rows, with a 95 % interval whose units are independent.

    Pairs: share with score(chosen) > score(rejected), a tie is wrong (Wilson, over pairs). Scored
    lists: share of strictly ordered pairs of each list in the right order (over lists). Judged
    steps: share on the right side of 0 (Wilson, over steps). Raises NumericsError if all scores
    are the same: such a model would teach nothing, and every later stage would look at noise.
    """
    scores: list[list[float]] = []
    parts: list[TokenGroup] = []
    stepwise = bool(groups[0].completions[0].steps)
    for part in micro_batches(groups, token_budget):
        batch = pack(part)
        outputs = compute(batch)
        flat = outputs.scores_S if stepwise else outputs.scores_C
        assert flat is not None
        remaining = iter(flat.float().tolist())
        for group in part:
            first = group.completions[0]
            count = len(first.steps) if stepwise else len(group.completions)
            scores.append([next(remaining) for _ in range(count)])
        parts += part
    _refuse_constant([score for found in scores for score in found])
    if stepwise:
        return _of_steps(parts, scores)
    if parts[0].chosen is not None:
        return _of_pairs(parts, scores)
    return _of_lists(parts, scores)


def _of_pairs(groups: list[TokenGroup], scores: list[list[float]]) -> Verdict:
    rows: list[dict[str, Any]] = []
    right = 0
    for group, found in zip(groups, scores, strict=True):
        assert group.chosen is not None
        assert group.rejected is not None
        chosen, rejected = found[group.chosen], found[group.rejected]
        rows.append({"where": group.where, "chosen_score": chosen, "rejected_score": rejected})
        right += chosen > rejected
    return Verdict(wilson_interval(right, len(rows)), "pairs", rows)


def _of_lists(groups: list[TokenGroup], scores: list[list[float]]) -> Verdict:
    rows, shares = [], []
    for group, found in zip(groups, scores, strict=True):
        given = group.scores
        ordered = [
            mine > other
            for mine, better in zip(found, given, strict=True)
            for other, worse in zip(found, given, strict=True)
            if better > worse
        ]
        rows.append({"where": group.where, "scores": found, "given": given})
        if ordered:  # a list of equals has no order to get right
            shares.append(sum(ordered) / len(ordered))
    return Verdict(share_interval(shares) if shares else None, "lists", rows)


def _of_steps(groups: list[TokenGroup], scores: list[list[float]]) -> Verdict:
    rows, right = [], []
    for group, found in zip(groups, scores, strict=True):
        labels = [label for _, label in group.completions[0].steps]
        rows.append({"where": group.where, "step_scores": found, "labels": labels})
        right += [(score > 0) is label for score, label in zip(found, labels, strict=True)]
    return Verdict(wilson_interval(sum(right), len(right)), "steps", rows)


def _refuse_constant(scores: list[float]) -> None:
    if len(scores) > 1 and max(scores) - min(scores) < 1e-6:
        raise NumericsError(
            f"the reward model gives everything the score {scores[0]:.4g}",
            where="after training it",
            remedy="train longer or with a higher learning_rate, and look at the rows",
        )
