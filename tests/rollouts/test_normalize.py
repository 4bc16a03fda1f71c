"""Scores on one scale: moments against the statistics module over the lists as they came."""

from __future__ import annotations

import statistics
from dataclasses import replace
from itertools import count

import pytest
import torch
from test_collect import collector

from small_groups import random_groups, scorer
from truing.errors import NumericsError
from truing.groups import TokenGroup
from truing.rollouts.credit.group import GroupCredit
from truing.rollouts.normalize import ScoreNormalizer

ROLLOUTS = [[3.0, -1.0, 4.5, 0.25], [10.0, 12.0], [-7.0, 2.0, 2.0, 2.0, 100.0]]


def taken(normalize, scores):
    """What becomes of the scores of one rollout."""
    scores_C = torch.tensor(scores)
    normalize.fit(scores_C)
    return normalize.apply(scores_C)


def fed(kind, rollouts=ROLLOUTS):
    """What becomes of each rollout's scores."""
    normalize = ScoreNormalizer(kind)
    return [taken(normalize, scores).tolist() for scores in rollouts]


def so_far(index):
    return [score for scores in ROLLOUTS[: index + 1] for score in scores]


def scaled(scores, mean, deviation):
    return pytest.approx([(score - mean) / deviation for score in scores], rel=1e-6)


def test_reference_is_the_first_rollouts_scale_for_ever():
    mean, deviation = statistics.fmean(ROLLOUTS[0]), statistics.stdev(ROLLOUTS[0])
    assert fed("reference") == [scaled(scores, mean, deviation) for scores in ROLLOUTS]


def test_running_is_over_all_scores_so_far_this_rollouts_included():
    for i, seen in enumerate(fed("running")):
        known = so_far(i)
        assert seen == scaled(ROLLOUTS[i], statistics.fmean(known), statistics.stdev(known))


def test_running_scale_leaves_the_mean_where_it_is():
    for i, seen in enumerate(fed("running_scale")):
        assert seen == scaled(ROLLOUTS[i], 0.0, statistics.stdev(so_far(i)))


def test_none_leaves_everything():
    assert fed("none") == ROLLOUTS
    assert fed("none", [[1.0, 1.0, 1.0]]) == [[1, 1, 1]]


def test_the_kinds_differ_in_the_order_of_how_much_they_follow():
    """A reward that rises: the reference's scale shows it, a running one takes half of it back."""
    last = [fed(kind, [[0.0, 2.0], [8.0, 10.0]])[1] for kind in ("reference", "running")]
    assert statistics.fmean(last[0]) > 2 * statistics.fmean(last[1]) > 0


@pytest.mark.parametrize("kind", ["running", "running_scale"])
def test_scores_that_come_in_parts_have_the_moments_of_the_whole(kind):
    whole, cut = ScoreNormalizer(kind), ScoreNormalizer(kind)
    for scores in ROLLOUTS:
        whole.fit(torch.tensor(scores))
        cut.fit(torch.tensor(scores[:2]))
        if scores[2:]:
            cut.fit(torch.tensor(scores[2:]))
        assert (cut.mean, cut.deviation) == pytest.approx((whole.mean, whole.deviation), rel=1e-12)


@pytest.mark.parametrize("kind", ["reference", "running"])
def test_a_spread_far_from_zero_is_still_seen(kind):
    """Σx² − n·mean² would lose every digit of it."""
    scores = [1e4 + x for x in (0.0, 0.5, 1.0, 2.5)]
    normalize = ScoreNormalizer(kind)
    normalize.fit(torch.tensor(scores[:2]))
    normalize.fit(torch.tensor(scores[2:]))
    known = scores[:2] if kind == "reference" else scores
    assert normalize.deviation == pytest.approx(statistics.stdev(known), rel=1e-6)
    assert normalize.mean == pytest.approx(statistics.fmean(known), rel=1e-9)


@pytest.mark.parametrize("kind", ["reference", "running", "running_scale"])
def test_a_constant_reward_is_refused_at_the_start_and_no_news_later(kind):
    with pytest.raises(NumericsError, match="same score"):
        fed(kind, [[2.0, 2.0, 2.0]])
    solved = fed(kind, [[0.0, 2.0], [2.0, 2.0]])[1]
    assert solved[0] == solved[1]
    assert abs(solved[0]) < 10


def test_a_greedy_baseline_is_put_on_the_same_scale_and_counts_for_nothing():
    for kind in ("reference", "running", "running_scale"):
        normalize = ScoreNormalizer(kind)
        seen = taken(normalize, ROLLOUTS[0])
        before = replace(normalize)
        assert torch.equal(normalize.apply(torch.tensor(ROLLOUTS[0])), seen)
        assert normalize == before


def prompts(number=6, seed=1):
    return [TokenGroup(g.prompt_ids) for g in random_groups(seed, number, 0)]


@scorer
def by_length(completion, group):
    return float(len(completion.ids))


def test_a_rollout_credits_the_scaled_scores_and_shows_the_rewards_own():
    plain = GroupCredit(baseline="none", scale_rewards="none")
    made = collector(score=by_length, credit=plain, normalize=ScoreNormalizer("running_scale"))
    rollout = made.collect(prompts(), 3)
    lengths = [len(c.ids) for g in rollout.groups for c in g.completions]
    flat = [b for part in rollout.minibatches for b in part]
    seen = torch.cat([b["advantages_N"][b.last_C] for b in flat]).tolist()
    spread = statistics.stdev(lengths)
    assert sorted(seen) == pytest.approx(sorted(n / spread for n in lengths))
    assert rollout.metrics["objective/scores"] == pytest.approx(statistics.fmean(lengths))


@pytest.mark.parametrize("kind", ["reference", "running"])
def test_redrawn_groups_are_counted_once(kind):
    """With dynamic sampling and nothing to redraw it is the scale that there is without."""

    @scorer
    def always_differs(completion, group):
        return float(group.completions.index(completion)) + len(group.prompt_ids)

    supply = (prompts(6, seed) for seed in count(2))
    scales = []
    for rounds in (0, 3):
        made = collector(
            score=always_differs, normalize=ScoreNormalizer(kind), dynamic_rounds=rounds
        )
        for seed in (3, 4):
            made.collect(prompts(6, seed), seed, more=lambda: next(supply))
        scales.append(made.normalize)
    assert scales[1].count == scales[0].count
    assert scales[1].deviation == pytest.approx(scales[0].deviation, rel=1e-9)
