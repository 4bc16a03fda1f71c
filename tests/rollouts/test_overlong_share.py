"""DAPO's length limit may be given as a share of the stage's own."""

from __future__ import annotations

import pytest
import torch

from truing.batch import Batch
from truing.rollouts.credit.group import GroupCredit


def scored_batch(lengths: list[int], score: float) -> Batch:
    """Each completion a group of its own, on its reference."""
    completion_N = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    blank_T = torch.zeros(len(completion_N) + 1, dtype=torch.long)
    index_N = torch.arange(len(completion_N))
    layout = (blank_T, blank_T, blank_T, blank_T, index_N, index_N + 1, completion_N)
    return Batch(*layout, group_C=torch.arange(len(lengths))).with_columns(
        scores_C=torch.full((len(lengths),), score),
        finished_C=torch.ones(len(lengths), dtype=torch.bool),
        sampled_logps_N=-torch.ones(len(completion_N)),
        reference_logps_N=-torch.ones(len(completion_N)),
    )


def test_a_share_follows_the_limit_of_the_stage():
    batch = scored_batch([40, 45, 50, 60], score=1.0)
    settings = {"baseline": "none", "scale_rewards": "none", "max_completion_length": 50}
    (shared,), _ = GroupCredit(overlong_cache=0.2, **settings)([batch])
    (counted,), _ = GroupCredit(overlong_cache=10, **settings)([batch])
    torch.testing.assert_close(shared["advantages_N"], counted["advantages_N"])
    assert shared["advantages_N"][batch.last_C].tolist() == pytest.approx([1.0, 0.5, 0.0, 0.0])


def test_completions_without_a_group_say_nothing_of_groups():
    batch = scored_batch([3, 4], score=1.0)
    _, metrics = GroupCredit(baseline="none")([batch])
    assert metrics["groups/singletons"].total == 2
    assert metrics["frac_reward_zero_std"].weight == 0
