"""Token groups to batches: every prompt stored once, its completions after it, nothing padded.

T tokens · N predicted tokens · C completions · G groups · S judged steps
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from truing.batch import Batch
from truing.groups import FinishReason, TokenGroup


def micro_batches(groups: Sequence[TokenGroup], token_budget: int) -> list[list[TokenGroup]]:
    """Divide groups into parts of at most `token_budget` tokens.

    Longest first, so that a part's groups have similar lengths: attention is computed for groups
    of one length together. A group longer than the budget is a part of its own.
    """
    parts: list[list[TokenGroup]] = []
    used = token_budget
    for group in sorted(groups, key=lambda g: g.length, reverse=True):
        if used + group.length > token_budget:
            parts.append([])
            used = 0
        parts[-1].append(group)
        used += group.length
    return parts


def pack(groups: Sequence[TokenGroup]) -> Batch:
    """One batch of all groups, in their order."""
    assert groups, "an empty batch has no shape"
    layout = _Layout()
    for index, group in enumerate(groups):
        layout.add(index, group)
    return layout.batch(_columns(groups))


class _Layout:
    """Collects every token of every group, and where it went."""

    def __init__(self) -> None:
        self.token: list[int] = []
        self.position: list[int] = []
        self.group: list[int] = []
        self.branch: list[int] = []
        self.source_N: list[int] = []
        self.target_N: list[int] = []
        self.completion_N: list[int] = []
        self.group_C: list[int] = []
        self.step_end_S: list[int] = []

    def add(self, index: int, group: TokenGroup) -> None:
        prompt_length = len(group.prompt_ids)
        self._write(group.prompt_ids, 0, index, branch=0)
        last_of_prompt = len(self.token) - 1
        for branch, completion in enumerate(group.completions, start=1):
            start, length = len(self.token), len(completion.ids)
            self._write(completion.ids, prompt_length, index, branch)
            self.source_N += [last_of_prompt, *range(start, start + length - 1)]
            self.target_N += range(start, start + length)
            self.completion_N += [len(self.group_C)] * length
            self.group_C.append(index)
            self.step_end_S += [start + last for last, _ in completion.steps]

    def _write(self, ids: Sequence[int], position: int, index: int, branch: int) -> None:
        length = len(ids)
        self.token += ids
        self.position += range(position, position + length)
        self.group += [index] * length
        self.branch += [branch] * length

    def batch(self, columns: dict[str, Tensor]) -> Batch:
        return Batch(
            tokens_T=torch.tensor(self.token),
            positions_T=torch.tensor(self.position),
            group_T=torch.tensor(self.group),
            branch_T=torch.tensor(self.branch),
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
    if any(c.of_reference for c in completions):
        columns["of_reference_C"] = torch.tensor([c.of_reference for c in completions])
    drawn = [c.sampled_logps for c in completions if c.sampled_logps is not None]
    if drawn and len(drawn) == len(completions):
        columns["sampler_logps_N"] = torch.tensor([logp for logps in drawn for logp in logps])
    labels = [label for c in completions for _, label in c.steps]
    if labels:
        columns["step_label_S"] = torch.tensor(labels)
    return columns
