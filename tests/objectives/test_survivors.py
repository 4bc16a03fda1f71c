"""What a planted bug once slipped past: each of these was written because a mutant lived."""

from __future__ import annotations

import pytest
from flat_batches import make_batch

from truing.batch import combine
from truing.rollouts.credit.group import GroupCredit


def scored(groups, scores):
    """A rollout of one-token completions."""
    n = len(scores)
    blank = [0.0] * n
    return make_batch(
        [1] * n,
        groups,
        scores_C=scores,
        finished_C=[True] * n,
        sampled_logps_N=blank,
        reference_logps_N=blank,
    )


def test_every_group_counts_once_however_many_completions_it_has():
    """Four silent completions of seven, in one group of two; the third group is a single one."""
    batch = scored([0, 0, 0, 0, 1, 1, 2], [5.0, 5.0, 5.0, 5.0, 1.0, 3.0, 4.0])
    _, metrics = GroupCredit()([batch])
    found = combine([metrics])
    assert found["frac_reward_zero_std"] == pytest.approx(1 / 2)  # a group of one says nothing
    assert found["reward_std"] == pytest.approx(2**0.5 / 2)
    assert found["groups/singletons"] == 1
