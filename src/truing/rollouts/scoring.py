"""Rewards over texts, for groups of tokens: the prompt as a person reads it, and its columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from truing.groups import TokenGroup
from truing.rewards.base import Reward, score


def score_groups(
    reward: Reward, groups: Sequence[TokenGroup], readable: Callable[[Sequence[int]], str]
) -> list[float]:
    """One number per completion, in order. Raises RolloutError for a reward that fails.

    Columns that every row has are handed to the reward by name, as TRL does.
    """
    prompts: list[str] = []
    texts: list[str] = []
    columns: list[dict[str, Any]] = []
    for group in groups:
        for completion in group.completions:
            origin = group.origin
            prompts.append(readable(group.prompt_ids) if origin is None else origin.prompt.text)
            texts.append(readable(completion.ids))
            columns.append({} if origin is None else dict(origin.columns))
    shared = set(columns[0]).intersection(*columns) if columns else set()
    return score(reward, prompts, texts, {name: [c[name] for c in columns] for name in shared})
