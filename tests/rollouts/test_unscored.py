"""Completions without a score leave their group; the rest is credited as if it were alone."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import pytest
import torch
from test_collect import collector

from small_groups import random_groups
from truing.errors import RolloutError
from truing.groups import TokenCompletion, TokenGroup
from truing.rewards.base import Patience, Reward, Scores
from truing.rollouts.credit.group import GroupCredit
from truing.rollouts.scoring import score_groups

PROMPTS = [TokenGroup(g.prompt_ids) for g in random_groups(1, 4, 0)]
GIVEN = {
    0: [4.0, None, 1.0, 7.0],
    1: [None, None, None, None],
    2: [None, 5.0, None, None],
    3: [-2.0, 6.0, 0.0, -4.0],
}
"""Scores of four completions to each of four prompts."""


def draw(prompts, seed):
    """Four completions of different lengths to each prompt, told apart by their ids."""
    return [
        TokenGroup(
            prompt.prompt_ids,
            tuple(
                TokenCompletion((3 + PROMPTS.index(prompt), *[10 + i] * i, 2),
                                sampled_logps=(-1.0,) * (i + 2))
                for i in range(4)
            ),
        )
        for prompt in prompts
    ]  # fmt: skip


def score(groups):
    values = [GIVEN[c.ids[0] - 3][len(c.ids) - 2] for g in groups for c in g.completions]
    missing = values.count(None)
    return Scores(
        values,
        parts={"half": [None if v is None else v / 2 for v in values]},
        faults={"nan": missing - 1, "too_long": 1} if missing else {},
    )


def rollout(**changes):
    plain = GroupCredit(baseline="leave_one_out", scale_rewards="none")
    return collector(**{"draw": draw, "score": score, "credit": plain} | changes)


def credited(found):
    """(prompt, which completion) -> its advantage."""
    seen = {}
    for batch in (b for part in found.minibatches for b in part):
        for c, last in enumerate(batch.last_C.tolist()):
            length = int(batch.lengths_C[c])
            first = int(batch.token_ids_N[last - length + 1])
            seen[first - 3, length - 2] = batch["advantages_N"][last].item()
    return seen


def leave_one_out(scores):
    """Of those that have a score: each less the mean of the others."""
    there = {i: s for i, s in enumerate(scores) if s is not None}
    if len(there) == 1:
        return dict.fromkeys(there, 0.0)
    return {
        i: s - statistics.fmean(x for j, x in there.items() if j != i) for i, s in there.items()
    }


def test_baselines_are_of_the_scored_ones_alone():
    expected = {
        (prompt, i): advantage
        for prompt, scores in GIVEN.items()
        for i, advantage in leave_one_out(scores).items()
    }
    assert credited(rollout().collect(PROMPTS, 3)) == pytest.approx(expected, abs=1e-6)
    assert expected[0, 0] == 0.0  # 4 against (1 + 7)/2: a missing score taken as 0 would give 4/3
    assert expected[2, 1] == 0.0  # alone in its group


def test_a_group_mean_and_deviation_are_of_the_scored_ones():
    credit = GroupCredit(baseline="group", scale_rewards="group", scale_epsilon=1e-9)
    seen = credited(rollout(credit=credit).collect(PROMPTS, 3))
    for prompt in (0, 3):
        there = {i: s for i, s in enumerate(GIVEN[prompt]) if s is not None}
        mean, deviation = statistics.fmean(there.values()), statistics.stdev(there.values())
        for i, s in there.items():
            assert seen[prompt, i] == pytest.approx((s - mean) / deviation, abs=1e-6)


def test_a_group_that_has_none_left_is_gone():
    found = rollout().collect(PROMPTS, 3)
    assert [len(group.completions) for group in found.groups] == [3, 1, 4]
    assert sum(b.size_C for part in found.minibatches for b in part) == 8
    assert found.metrics["groups/singletons"] == 1


def test_nothing_becomes_0():
    """Not in what is credited, not in a mean, not on disk."""
    found = rollout().collect(PROMPTS, 3)
    scored = [s for scores in GIVEN.values() for s in scores if s is not None]
    kept = sorted(c.score for group in found.groups for c in group.completions)
    assert kept == sorted(scored)
    assert found.metrics["objective/scores"] == pytest.approx(statistics.fmean(scored))
    assert found.metrics["rewards/half/mean"] == pytest.approx(statistics.fmean(scored) / 2)
    flat = [b for part in found.minibatches for b in part]
    assert sorted(torch.cat([b["scores_C"] for b in flat]).tolist()) == sorted(scored)


def test_faults_are_counted_by_reason_as_shares_of_what_was_drawn():
    metrics = rollout().collect(PROMPTS, 3).metrics
    assert metrics["rewards/unscored/nan"] == pytest.approx(7 / 16)
    assert metrics["rewards/unscored/too_long"] == pytest.approx(1 / 16)
    clean = rollout().collect(PROMPTS[3:], 3).metrics
    assert not [name for name in clean if name.startswith("rewards/unscored")]


def test_what_a_reward_said_is_told_over_all_draws_of_a_rollout():
    """With dynamic sampling: also over draws in which a reason did not occur."""
    made = rollout(dynamic_rounds=1)
    metrics = made.collect(PROMPTS[:3], 3, more=lambda: PROMPTS[3:]).metrics
    assert metrics["rewards/unscored/nan"] == pytest.approx(7 / 16)
    halves = [s / 2 for scores in GIVEN.values() for s in scores if s is not None]
    assert metrics["rewards/half/mean"] == pytest.approx(statistics.fmean(halves))
    assert metrics["rewards/half/std"] == pytest.approx(statistics.pstdev(halves))


def test_a_prompt_whose_greedy_baseline_has_no_score_is_left_out():
    def greedy(groups):
        return [TokenGroup(g.prompt_ids, draw([TokenGroup(g.prompt_ids)], 0)[0].completions[1:2])
                for g in groups]  # fmt: skip

    made = rollout(credit=GroupCredit(baseline="greedy", scale_rewards="none"), draw_greedy=greedy)
    found = made.collect(PROMPTS, 3)
    # the second completion is the greedy one: it has a score after prompts 2 and 3 only
    assert [(g.prompt_ids, g.baseline) for g in found.groups] == [
        (PROMPTS[2].prompt_ids, 5.0),
        (PROMPTS[3].prompt_ids, 6.0),
    ]
    assert credited(found)[3, 0] == pytest.approx(-2.0 - 6.0)


def test_redrawing_takes_a_group_with_one_score_left_for_silent():
    """It has nothing to be compared with."""
    made = rollout(dynamic_rounds=1)
    found = made.collect(PROMPTS, 3, more=list)
    assert [g.prompt_ids for g in found.groups] == [PROMPTS[i].prompt_ids for i in (0, 3)]


@dataclass(frozen=True)
class Fixed(Reward):
    """The same for every completion."""

    value: float | None

    def __call__(self, prompts, completions, **columns):
        return [self.value] * len(completions)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf], ids=str)
def test_a_rollout_without_any_score_stops_the_run(value):
    made = rollout(
        score=lambda groups: score_groups(Fixed(value), groups, lambda ids: "text", Patience())
    )
    with pytest.raises(RolloutError, match="not one of 16 completions could be scored"):
        made.collect(PROMPTS, 3)
