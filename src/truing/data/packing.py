"""Token groups to batches: every prompt stored once, rows kept short, nothing padded but rows.

R rows · T positions · N predicted tokens · C completions · G groups · S judged steps
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from truing.batch import Batch
from truing.groups import FinishReason, TokenGroup

ROW_TOKENS = 192
"""Short groups share rows of up to this many tokens. Wider rows are filled better (padding is
computed too), but their attention grows with the square of the width."""


def micro_batches(groups: Sequence[TokenGroup], token_budget: int) -> list[list[TokenGroup]]:
    """Divide groups so that each part packs into at most `token_budget` padded tokens.

    Longest first, so that a part's groups have similar lengths. A group longer than the budget
    is a part of its own.
    """
    parts: list[list[TokenGroup]] = []
    rows: list[int] = []
    for group in sorted(groups, key=lambda g: g.length, reverse=True):
        width = _width(parts[-1], token_budget) if parts else 0
        row = _first_fit(rows, group.length, width)
        opens_row = row == len(rows)
        if not parts or (opens_row and (len(rows) + 1) * width > token_budget):
            parts.append([])
            rows, row = [], 0
        if row == len(rows):
            rows.append(0)
        rows[row] += group.length
        parts[-1].append(group)
    return parts


def _width(groups: Sequence[TokenGroup], at_most: int) -> int:
    """As wide as the longest group; twice that where it is still a short row.

    Nothing in between: a row with room for one and a half groups is a third padding.
    """
    longest = max(group.length for group in groups)
    wide = 2 * longest if 2 * longest <= ROW_TOKENS else longest
    return max(longest, min(wide, at_most))


def _first_fit(rows: list[int], length: int, width: int) -> int:
    """The first row with room for `length`, or len(rows) for a new one."""
    for row, used in enumerate(rows):
        if used + length <= width:
            return row
    return len(rows)


def pack(groups: Sequence[TokenGroup]) -> Batch:
    """One batch of all groups, in their order, in rows at least as wide as the longest."""
    assert groups, "an empty batch has no shape"
    width = _width(groups, at_most=sum(group.length for group in groups))
    used: list[int] = []
    layout = _Layout()
    for index, group in enumerate(groups):
        row = _first_fit(used, group.length, width)
        if row == len(used):
            used.append(0)
        layout.add(index, group, offset=row * width + used[row])
        used[row] += group.length
    return layout.batch(rows=len(used), width=width, columns=_columns(groups))


class _Layout:
    """Collects where every token of every group goes."""

    def __init__(self) -> None:
        self.place: list[int] = []
        self.token: list[int] = []
        self.position: list[int] = []
        self.group: list[int] = []
        self.branch: list[int] = []
        self.source_N: list[int] = []
        self.target_N: list[int] = []
        self.completion_N: list[int] = []
        self.group_C: list[int] = []
        self.step_end_S: list[int] = []

    def add(self, index: int, group: TokenGroup, offset: int) -> None:
        prompt_length = len(group.prompt_ids)
        self._write(group.prompt_ids, offset, 0, index, branch=0)
        last_of_prompt = offset + prompt_length - 1
        offset += prompt_length
        for branch, completion in enumerate(group.completions, start=1):
            length = len(completion.ids)
            self._write(completion.ids, offset, prompt_length, index, branch)
            self.source_N += [last_of_prompt, *range(offset, offset + length - 1)]
            self.target_N += range(offset, offset + length)
            self.completion_N += [len(self.group_C)] * length
            self.group_C.append(index)
            self.step_end_S += [offset + last for last, _ in completion.steps]
            offset += length

    def _write(
        self, ids: Sequence[int], offset: int, position: int, index: int, branch: int
    ) -> None:
        length = len(ids)
        self.place += range(offset, offset + length)
        self.token += ids
        self.position += range(position, position + length)
        self.group += [index] * length
        self.branch += [branch] * length

    def batch(self, rows: int, width: int, columns: dict[str, Tensor]) -> Batch:
        place = torch.tensor(self.place)

        def spread(values: list[int], fill: int) -> Tensor:
            flat = torch.full((rows * width,), fill)
            flat[place] = torch.tensor(values)
            return flat.view(rows, width)

        return Batch(
            tokens_RT=spread(self.token, 0),
            positions_RT=spread(self.position, 0),
            group_RT=spread(self.group, -1),
            branch_RT=spread(self.branch, 0),
            source_N=torch.tensor(self.source_N, dtype=torch.long),
            target_N=torch.tensor(self.target_N, dtype=torch.long),
            completion_N=torch.tensor(self.completion_N, dtype=torch.long),
            group_C=torch.tensor(self.group_C, dtype=torch.long),
            columns=columns | self._steps(),
        )

    def _steps(self) -> dict[str, Tensor]:
        return {"step_end_S": torch.tensor(self.step_end_S)} if self.step_end_S else {}


def _columns(groups: Sequence[TokenGroup]) -> dict[str, Tensor]:
    """What the groups themselves know: choices, verdicts, scores, labels of steps."""
    completions = [c for group in groups for c in group.completions]
    columns = {
        "finished_C": torch.tensor([c.finish is FinishReason.STOP for c in completions]),
    }
    if all(group.chosen is not None and group.rejected is not None for group in groups):
        first, chosen, rejected = 0, [], []
        for group in groups:
            assert group.chosen is not None
            assert group.rejected is not None
            chosen.append(first + group.chosen)
            rejected.append(first + group.rejected)
            first += len(group.completions)
        columns["chosen_G"] = torch.tensor(chosen)
        columns["rejected_G"] = torch.tensor(rejected)
        for name in ("margin", "probability"):
            given = [getattr(group, name) for group in groups]
            if None not in given:
                columns[f"{name}_G"] = torch.tensor(given, dtype=torch.float32)
    if completions and all(c.label is not None for c in completions):
        columns["label_C"] = torch.tensor([bool(c.label) for c in completions])
    if completions and all(c.score is not None for c in completions):
        columns["scores_C"] = torch.tensor([float(c.score or 0.0) for c in completions])
    if any(c.mismatched for c in completions):
        columns["mismatched_C"] = torch.tensor([c.mismatched for c in completions])
    labels = [label for c in completions for _, label in c.steps]
    if labels:
        columns["step_label_S"] = torch.tensor(labels)
    return columns
