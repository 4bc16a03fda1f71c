"""Token groups of one type as another, so that a method runs on rows of a neighbouring type."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from truing.errors import DataError
from truing.groups import Completion, FinishReason, Group, Step, TokenCompletion, TokenGroup


def imitated(group: Group | TokenGroup) -> int | None:
    """Index of the completion to imitate: of a pair the chosen one, of scored ones the (first)
    best. None if it was judged bad, or one of its steps wrong."""
    if group.chosen is not None:
        return group.chosen
    completions: Sequence[Completion | TokenCompletion] = group.completions
    best = max(range(len(completions)), key=lambda index: completions[index].score or 0.0)
    return best if _is_right(completions[best]) else None


def demonstrations(groups: Iterable[TokenGroup]) -> list[TokenGroup]:
    """Every group with the one completion to imitate; without those that have none."""
    return [
        _with(group, (group.completions[best],))
        for group in groups
        if (best := imitated(group)) is not None
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
    """Every pair as a scored group: chosen 1, rejected 0.

    The pairs' own scores stay if every pair has them and none speaks against its choice: two
    scales in one data set would be none. Groups without a choice stay as they are.
    """
    groups = list(groups)
    own = all(map(_own_scores_agree, groups))
    found: list[TokenGroup] = []
    for group in groups:
        if group.chosen is None or group.rejected is None:
            found.append(group)
            continue
        pair = group.completions[group.chosen], group.completions[group.rejected]
        if not own:
            pair = replace(pair[0], score=1.0), replace(pair[1], score=0.0)
        found.append(_with(group, pair))
    return found


def with_mismatched(groups: Sequence[TokenGroup], seed: int) -> list[TokenGroup]:
    """Every unpaired group with one more completion, taken from a group with another prompt.

    `seed` orders the groups in a ring; each takes the completion of the next one there with a
    different prompt, so that (prompts being different) each lends once; of several completions
    each group lends another one in turn. A group's prompt is computed once for all its
    completions: the mismatched one costs no more than its own tokens. Behind a long prompt it is
    cut where the longest prompt and completion of the data end: a row's limit holds for it too.
    It has a label, so that every completion has one; nothing is to be learnt from it. Raises
    DataError when all prompts are the same.
    """
    lent = _next_with_another_prompt(groups, seed)
    longest = max(
        (len(g.prompt_ids) + len(c.ids) for g in groups for c in g.completions), default=0
    )
    arranged = []
    for index, group in enumerate(groups):
        mismatched = _lend(groups[lent[index]], group, index, longest)
        arranged.append(replace(group, completions=(*group.completions, mismatched)))
    return arranged


def _is_right(completion: Completion | TokenCompletion) -> bool:
    labels = [step.label if isinstance(step, Step) else step[1] for step in completion.steps]
    return completion.label is not False and all(labels)


def _own_scores_agree(group: TokenGroup) -> bool:
    if group.chosen is None or group.rejected is None:
        return True
    chosen = group.completions[group.chosen].score
    rejected = group.completions[group.rejected].score
    return chosen is not None and rejected is not None and chosen >= rejected


def _with(group: TokenGroup, completions: tuple[TokenCompletion, ...]) -> TokenGroup:
    """The group with these completions, without its choice and what was said of that."""
    return replace(
        group, completions=completions, chosen=None, rejected=None, margin=None, probability=None
    )


def _lend(lender: TokenGroup, group: TokenGroup, turn: int, longest: int) -> TokenCompletion:
    other = lender.completions[turn % len(lender.completions)]
    ids = other.ids[: longest - len(group.prompt_ids)]
    finish = other.finish if ids == other.ids else FinishReason.LENGTH
    label = group.completions[0].label
    return TokenCompletion(ids, finish, label=label, mismatched=True)


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
