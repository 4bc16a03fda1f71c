"""What methods ask of a rollout: redrawn groups, greedy baselines, filters, demonstrations."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
import torch
from test_collect import collector

from small_groups import random_groups, scorer
from truing.errors import RolloutError
from truing.groups import FinishReason, TokenGroup
from truing.rollouts.credit.group import GroupCredit
from truing.rollouts.normalize import ScoreNormalizer

PLAIN = GroupCredit(baseline="none", scale_rewards="none")


def prompts(number=6, seed=1):
    return [TokenGroup(g.prompt_ids) for g in random_groups(seed, number, 0)]


@scorer
def half_silent(completion, group):
    """Scores that differ only in groups with a prompt of even length."""
    return 0.0 if len(group.prompt_ids) % 2 else float(group.completions.index(completion))


def advantages_of(rollout):
    return torch.cat([b["advantages_N"] for part in rollout.minibatches for b in part])


def test_dynamic_sampling_redraws_until_the_rollout_is_full_of_groups_that_differ():
    supply = (prompts(6, seed) for seed in count(2))
    made = collector(score=half_silent, credit=PLAIN, dynamic_rounds=50)
    rollout = made.collect(prompts(), 3, more=lambda: next(supply))
    assert len(rollout.groups) == 6
    assert all(len(group.prompt_ids) % 2 == 0 for group in rollout.groups)
    assert 0 < rollout.metrics["dynamic/kept_fraction"] < 1
    plain = collector(score=half_silent, credit=PLAIN).collect(prompts(), 3)
    assert any(len(group.prompt_ids) % 2 for group in plain.groups)
    assert "dynamic/kept_fraction" not in plain.metrics


def test_what_dynamic_sampling_leaves_out_is_still_part_of_the_score():
    """A policy that solves more and more prompts must not look as if it stood still."""

    @scorer
    def solved_if_odd(completion, group):
        return 1.0 if len(group.prompt_ids) % 2 else float(group.completions.index(completion))

    made = collector(score=solved_if_odd, credit=PLAIN, dynamic_rounds=1)
    odd = [p for p in prompts(40) if len(p.prompt_ids) % 2]
    even = [p for p in prompts(40) if len(p.prompt_ids) % 2 == 0]
    rollout = made.collect([*odd[:1], *even[:5]], 3, more=lambda: [*odd[1:6], *even[5:6]])
    assert len(rollout.groups) == 6
    assert all(len(group.prompt_ids) % 2 == 0 for group in rollout.groups)
    assert rollout.metrics["objective/scores"] == pytest.approx((6 * 1.0 + 6 * 0.5) / 12)


def test_dynamic_sampling_goes_on_with_fewer_and_stops_when_nothing_differs():
    few = collector(score=half_silent, credit=PLAIN, dynamic_rounds=1)
    odd = [p for p in prompts(40) if len(p.prompt_ids) % 2][:4]
    even = [p for p in prompts(40) if len(p.prompt_ids) % 2 == 0][:1]
    assert len(few.collect(odd, 3, more=lambda: even).groups) == 1
    silent = few.collect(odd, 3, more=lambda: odd)  # a policy that has solved them all goes on
    assert (silent.minibatches, silent.groups) == ([], [])
    assert silent.metrics["dynamic/kept_fraction"] == 0
    with pytest.raises(RolloutError, match="all scores are equal"):
        replace(few, collected=0).collect(odd, 3, more=lambda: odd)


def test_a_greedy_baseline_is_drawn_scored_and_normalised_like_the_rest():
    def greedy(groups):
        return [replace(g, completions=g.completions[:1], baseline=None) for g in groups]

    made = collector(
        credit=GroupCredit(baseline="greedy", scale_rewards="none"),
        draw_greedy=greedy,
        normalize=ScoreNormalizer("reference"),
    )
    rollout = made.collect(prompts(), 3)
    raw = torch.cat([torch.tensor([float(c.score) for c in g.completions]) for g in rollout.groups])
    deviation = float(raw.std())
    for group in rollout.groups:
        assert group.baseline == len(group.completions[0].ids)
    seen = torch.cat(
        [
            (b["advantages_N"][b.last_C] * deviation).round()
            for part in rollout.minibatches
            for b in part
        ]
    )
    expected = [
        float(c.score - group.baseline) for group in rollout.groups for c in group.completions
    ]
    assert sorted(seen.tolist()) == sorted(expected)


def test_filtered_completions_give_no_loss_and_stay_in_the_baseline():
    def draw(given, seed):
        drawn = collector().draw(given, seed)
        return [
            replace(
                g,
                completions=tuple(
                    replace(c, finish=FinishReason.LENGTH if i == 0 else FinishReason.STOP)
                    for i, c in enumerate(g.completions)
                ),
            )
            for g in drawn
        ]

    credit = GroupCredit(scale_rewards="none", overlong_filter=True)
    rollout = collector(draw=draw, credit=credit).collect(prompts(), 3)
    kept = [b for part in rollout.minibatches for b in part]
    assert sum(b.size_C for b in kept) == 6
    assert all(b["finished_C"].all() for b in kept)
    means = {
        len(g.completions[1].ids) - sum(len(c.ids) for c in g.completions) / 2
        for g in rollout.groups
    }
    assert {float(a) for b in kept for a in b["advantages_N"]} == means
    assert rollout.metrics["completions/clipped_ratio"] == 0.5


def test_demonstrations_stand_beside_every_minibatch():
    shown = random_groups(9, 3, 1)
    made = collector(credit=PLAIN, demonstrations=iter([shown] * 9))
    for part in made.collect(prompts(), 3).minibatches:
        flags = torch.cat([b["demonstration_C"] for b in part])
        assert flags.sum() == 3
        assert all(b["demonstration_C"].unique().numel() == 1 for b in part)
        assert all("advantages_N" in b for b in part)
