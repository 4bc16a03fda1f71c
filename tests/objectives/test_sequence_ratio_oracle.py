"""Policy gradients with one ratio per completion, in scalars (sheet 1.4 RLOO, 1.5 GSPO, GMPO)."""

import math

import pytest
import torch
from points import FAR, NEAR, SAMPLED, agree, judge
from scalar import mean, ppo_like

from truing import objectives

C = 4
precisions = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32], ids=["double", "single"]
)
both_points = pytest.mark.parametrize("point", [FAR, NEAR], ids=["far", "near"])


def of_sequence(point, loss_of):
    """Σ over completions of loss_of(policy row, sampled row, advantages, the row at the point)."""
    rest = [point.columns[n] for n in ("sampled_logps_N", "advantages_N")]
    return lambda policy: sum(
        loss_of(*rows) for rows in zip(policy, *rest, point.policy, strict=True)
    )


@both_points
@pytest.mark.parametrize("cliprange", [0.2, 0.45])
@precisions
def test_rloo_clips_the_ratio_of_the_whole_completion(point, cliprange, dtype):
    def loss(now, old, a, then):
        return ppo_like(math.exp(sum(now) - sum(old)), mean(a), cliprange, cliprange)

    objective = objectives.find("rloo")(cliprange=cliprange)
    agree(objective, point, of_sequence(point, loss), C, dtype)


@both_points
@pytest.mark.parametrize(("low", "high"), [(3e-4, 4e-4), (0.1, 0.35)])
@precisions
def test_gspo_has_one_length_normalised_ratio(point, low, high, dtype):
    def loss(now, old, a, then):
        return ppo_like(math.exp(mean(now) - mean(old)), mean(a), low, high)

    objective = objectives.find("gspo")(epsilon=low, epsilon_high=high)
    agree(objective, point, of_sequence(point, loss), C, dtype)


@both_points
@pytest.mark.parametrize(("low", "high"), [(3e-4, 4e-4), (0.1, 0.35)])
def test_gspo_token_spreads_the_ratio_over_its_tokens(point, low, high):
    def loss(now, old, a, then):
        s = math.exp(mean(then) - mean(old))  # detached; each token has its own unit slope
        ratios = [s * math.exp(x - y) for x, y in zip(now, then, strict=True)]
        return mean([ppo_like(w, x, low, high) for w, x in zip(ratios, a, strict=True)])

    objective = objectives.find("gspo")(epsilon=low, epsilon_high=high, level="token")
    agree(objective, point, of_sequence(point, loss), C)


def test_both_levels_of_gspo_pull_alike_where_the_advantage_is_constant():
    constant = [[x] * len(row) for x, row in zip((1.0, -0.5, -2.0, 0.7), SAMPLED, strict=True)]
    point = FAR.with_columns(advantages_N=constant)
    wide = {"epsilon": 0.1, "epsilon_high": 0.35}
    (a, slope_a), (b, slope_b) = (
        judge(objectives.find("gspo")(**wide, level=level), point)
        for level in ("sequence", "token")
    )
    assert a.total.item() == pytest.approx(b.total.item(), abs=1e-12)
    assert slope_a == pytest.approx(slope_b, abs=1e-12)


@both_points
@pytest.mark.parametrize("log_clip", [0.4, 0.08])
@precisions
def test_gmpo_takes_the_geometric_mean_of_ratios_clipped_where_they_gain(point, log_clip, dtype):
    def loss(now, old, a, then):
        advantage = mean(a)
        logs = [x - y for x, y in zip(now, old, strict=True)]
        if advantage > 0:
            kept = [min(x, log_clip) for x in logs]
        else:
            kept = [max(x, -log_clip) for x in logs]
        return -advantage * math.exp(mean(kept))

    objective = objectives.find("gmpo")(log_clip=log_clip)
    agree(objective, point, of_sequence(point, loss), C, dtype)
