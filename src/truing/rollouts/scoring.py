"""Rewards over texts, for groups of tokens: the prompt as a person reads it, and its columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from truing.groups import Group, TokenGroup
from truing.rewards.base import Patience, Reward, Scores, score


def score_groups(
    reward: Reward,
    groups: Sequence[TokenGroup],
    readable: Callable[[Sequence[int]], str],
    patience: Patience = Patience(),  # noqa: B008 (it is frozen)
) -> Scores:
    """One number per completion, in order, None where there is none (see rewards/base.py).

    The rows' columns are handed to the reward by name, as TRL does (None in the rows that have not
    got one that others have), and those it wants of the sampler. Raises RolloutError for a reward
    that fails, and if not one completion of all these groups could be scored: so give it a whole
    rollout.
    """
    prompts: list[str] = []
    texts: list[str] = []
    columns: list[dict[str, Any]] = []
    for number, group in enumerate(groups):
        origin = group.origin
        messages = None if origin is None else _messages(origin)
        for completion in group.completions:
            prompts.append(readable(group.prompt_ids) if origin is None else origin.prompt.text)
            texts.append(readable(completion.ids))
            drawn = {
                "completion_ids": list(completion.ids),
                "prompt_messages": messages,
                "group": number,
            }
            own = {} if origin is None else _own(origin)
            columns.append(own | {name: drawn[name] for name in reward.wants})
    names: list[str] = sorted({name for given in columns for name in given})
    by_name = {name: [c.get(name) for c in columns] for name in names}
    return score(reward, prompts, texts, by_name, patience)


def _own(origin: Group) -> dict[str, Any]:
    """The row's columns, less those that would hide what every reward is called with."""
    return {name: v for name, v in origin.columns.items() if name not in ("prompts", "completions")}


def scores_by_group(scores: Scores, groups: Sequence[TokenGroup]) -> list[list[float | None]]:
    """The numbers of each group's completions."""
    remaining = iter(scores.values)
    return [[next(remaining) for _ in group.completions] for group in groups]


def unscored(scores: Scores) -> str:
    """How many completions have no score, and why, for people."""
    why = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(scores.faults.items()))
    return f"{sum(scores.faults.values()):,} of {len(scores.values):,} completions unscored ({why})"


def _messages(origin: Group) -> list[dict[str, str]] | None:
    """A conversation as TRL's reward functions get it; None for a plain prompt."""
    if origin.prompt.messages is None:
        return None
    return [{"role": m.role, "content": m.content} for m in origin.prompt.messages]
