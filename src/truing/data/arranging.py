"""Token groups of one type as another, so that a method runs on rows of a neighbouring type."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from truing.errors import DataError
from truing.groups import TokenCompletion, TokenGroup


def demonstrations(groups: Iterable[TokenGroup]) -> list[TokenGroup]:
    """Of a pair the chosen completion, of scored ones the (first) best; of verdicts the good."""
    return [
        _with(group, (_best(group),)) for group in groups if group.completions[0].label is not False
    ]


def unpaired(groups: Iterable[TokenGroup]) -> list[TokenGroup]:
    """Every pair as a group of two verdicts: chosen True, rejected False. Their prompt stays one.

    Groups without a choice stay as they are.
    """
    found: list[TokenGroup] = []
    for group in groups:
        if group.chosen is None or group.rejected is None:
            found.append(group)
            continue
        pair = group.completions[group.chosen], group.completions[group.rejected]
        found.append(_with(group, (replace(pair[0], label=True), replace(pair[1], label=False))))
    return found


def as_scored(groups: Iterable[TokenGroup]) -> list[TokenGroup]:
    """Every pair as a scored group: chosen 1, rejected 0, unless each has a score of its own.

    Groups without a choice stay as they are.
    """
    found: list[TokenGroup] = []
    for group in groups:
        if group.chosen is None or group.rejected is None:
            found.append(group)
            continue
        pair = group.completions[group.chosen], group.completions[group.rejected]
        if any(completion.score is None for completion in pair):
            pair = replace(pair[0], score=1.0), replace(pair[1], score=0.0)
        found.append(_with(group, pair))
    return found


def with_mismatched(groups: Sequence[TokenGroup], seed: int) -> list[TokenGroup]:
    """Every unpaired group with one more completion, taken from a group with another prompt.

    `seed` orders the groups in a ring; each takes the completion of the next one there with a
    different prompt, so that (prompts being different) each lends once; of several completions
    each group lends another one in turn. A group's prompt is computed once for all its
    completions: the mismatched one costs no more than its own tokens. It has a label, so that
    every completion has one; nothing is to be learnt from it. Raises DataError when all prompts
    are the same.
    """
    lent = _next_with_another_prompt(groups, seed)
    return [
        replace(group, completions=(*group.completions, _lend(groups[lent[index]], group, index)))
        for index, group in enumerate(groups)
    ]


def _best(group: TokenGroup) -> TokenCompletion:
    if group.chosen is not None:
        return group.completions[group.chosen]
    return max(group.completions, key=lambda completion: completion.score or 0.0)


def _with(group: TokenGroup, completions: tuple[TokenCompletion, ...]) -> TokenGroup:
    """The group with these completions, without its choice and what was said of that."""
    return replace(
        group, completions=completions, chosen=None, rejected=None, margin=None, probability=None
    )


def _lend(lender: TokenGroup, group: TokenGroup, turn: int) -> TokenCompletion:
    other = lender.completions[turn % len(lender.completions)]
    label = group.completions[0].label
    return TokenCompletion(other.ids, other.finish, label=label, mismatched=True)


def _next_with_another_prompt(groups: Sequence[TokenGroup], seed: int) -> dict[int, int]:
    """Index of each group -> index of the next one in the ring that has a different prompt."""
    ring = list(range(len(groups)))
    random.Random(seed).shuffle(ring)
    found: dict[int, int] = {}
    for after, here in pairwise(reversed(ring * 2 + ring[:1])):  # in the second lap it is known
        if groups[here].prompt_ids != groups[after].prompt_ids:
            found[here] = after
        elif after in found:
            found[here] = found[after]
    if len(found) < len(groups):
        raise DataError(
            "all prompts are the same: no completion is mismatched with any",
            where=groups[0].where,
            remedy="give rows with at least two prompts, or a method without a KL baseline",
        )
    return found
