"""`approxkl_limit`: a rollout is left when ½ (log ratio)² of a step is beyond it."""

from __future__ import annotations

import pytest
from test_step import built

from truing.errors import UsageError
from truing.rollouts.collect import Rollout
from truing.rundir import RunDirectory
from truing.training.loop import train
from truing.training.method import resolve
from truing.training.sources import OnPolicy

EPOCHS, MINIBATCHES = 4, 2
APPROXKL = "policy/approxkl_avg"


def drifts(folder, **knobs):
    """½ (log ratio)² of every step, one list a rollout."""
    stage = built(
        "ppo", num_train_epochs=EPOCHS, batch_size=4, num_rollouts=3, warmup_ratio=0.0, **knobs
    )  # fmt: skip
    folder.mkdir()
    run = RunDirectory(folder)
    train(stage.step, stage.source, run, lambda *_: None, stage.meter)
    rollouts = []
    for row in run.metrics():
        if "objective/kl" in row:  # what a rollout measured stands in its first step
            rollouts.append([])
        rollouts[-1].append(row[APPROXKL])
    return rollouts


def test_the_steps_of_each_rollout_are_as_many_as_by_hand(tmp_path):
    whole = drifts(tmp_path / "whole")
    assert [len(steps) for steps in whole] == [EPOCHS * MINIBATCHES] * 3
    for place in (2, 4, 6):
        limit = sorted(whole[0])[place] * 0.999
        by_hand = next(i for i, drift in enumerate(whole[0]) if drift > limit) + 1
        assert by_hand < EPOCHS * MINIBATCHES
        seen = drifts(tmp_path / str(place), approxkl_limit=limit)
        assert seen[0] == pytest.approx(whole[0][:by_hand], rel=1e-6, abs=1e-12)
        for steps in seen:
            assert all(drift <= limit for drift in steps[:-1])
            assert steps[-1] > limit or len(steps) == EPOCHS * MINIBATCHES
        assert len(seen) == 3  # the next rollout is drawn and learnt from all the same


def test_a_smaller_limit_stops_earlier(tmp_path):
    whole = drifts(tmp_path / "whole")
    limits = [sorted(whole[0])[place] * 0.999 for place in (2, 6)]
    counts = [
        sum(map(len, drifts(tmp_path / f"{limit}", approxkl_limit=limit))) for limit in limits
    ]
    assert counts[0] < counts[1] < sum(map(len, whole))
    unreached = drifts(tmp_path / "far", approxkl_limit=1e9)
    assert unreached == whole


class Plain:
    """A collector of rollouts with five minibatches."""

    batch_size = 1

    def collect(self, prompts, seed, more):
        return Rollout([[i] for i in range(5)], {}, [])


def source(limit):
    return OnPolicy(
        list(range(8)), Plain(), lambda i, r: None, 5, 1, 3, 1, seed=3, approxkl_limit=limit
    )


def steps_per_rollout(measured, limit):
    """How many steps each rollout gives while a step measures these numbers, in turn."""
    seen, given = source(limit), iter(measured)
    counts, before = [], 0
    seen.on_rollout = lambda index, rollout: counts.append(0)
    for _ in seen:
        counts[-1] += 1
        seen.observe({APPROXKL: next(given, before)})
    return counts


def test_it_is_the_last_step_that_counts_and_the_limit_itself_is_still_near():
    assert steps_per_rollout([0.1, 0.2, 0.3], 0.2) == [3, 5, 5]
    assert steps_per_rollout([0.3, 0.1, 0.3, 0.0, 0.3], 0.2) == [1, 2, 2]
    assert steps_per_rollout([0.3] * 15, None) == [5, 5, 5]


def test_a_method_that_measures_no_ratio_cannot_stop_by_it():
    """REINFORCE has no π_old in its loss: asking for the limit is an error of the recipe."""
    # red while `resolve` lets it through: the first step then ends in a bare KeyError
    with pytest.raises(UsageError, match="approxkl_limit"):
        resolve("s", {"method": "reinforce", "reward": "r", "approxkl_limit": 0.1}, "here")


def test_the_first_step_is_at_ratio_1_and_never_too_far():
    stage = built(
        "ppo",
        num_train_epochs=4,
        batch_size=4,
        num_rollouts=1,
        warmup_ratio=0.0,
        approxkl_limit=1e-12,
    )
    for work in stage.source:
        stage.source.observe(stage.step(work.micro_batches, work.metrics))
    assert stage.step.taken == 2
