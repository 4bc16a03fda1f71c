"""PPO against upstream vectors and the clip table (algorithm sheet 1.3, 5.2, O7, O8)."""

import math

import pytest
import torch
from flat_batches import leaf, make_batch
from pydantic import ValidationError

from truing.batch import Outputs, combine
from truing.objectives.policy_gradient.ppo import PPO


def step(
    ratios,
    advantages,
    values=None,
    old_values=None,
    returns=None,
    lengths=None,
    dtype=torch.float64,
    entropy=None,
    **knobs,
):
    """A loss and its two leaves; where no values are given the value loss is 0."""
    n = len(ratios)
    values = [0.0] * n if values is None else values
    sampled = [-1.0 - 0.25 * i for i in range(n)]
    batch = make_batch(
        lengths or [n],
        None,
        dtype,
        sampled_logps_N=sampled,
        advantages_N=advantages,
        returns_N=values if returns is None else returns,
        values_N=values if old_values is None else old_values,
    )
    logps_N = leaf([s + math.log(w) for s, w in zip(sampled, ratios, strict=True)], dtype)
    values_N = leaf(values, dtype)
    entropy_N = None if entropy is None else torch.tensor(entropy, dtype=dtype)
    loss = PPO(**knobs)(batch, Outputs(logps_N, entropy_N, values_N))
    return loss, logps_N, values_N


def value_step(value, old, target, **knobs):
    """Loss and slope of one value, the policy silent."""
    loss, _, values_N = step([1.0], [0.0], [value], [old], [target], vf_coef=1.0, **knobs)
    loss.total.backward()
    return loss.total.item(), values_N.grad.item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_clip_vector(dtype):
    loss, _, _ = step([0.5, 1, 1.5], [1, -1, 2], cliprange=0.2, dtype=dtype)
    assert loss.total.item() == pytest.approx(-0.5 + 1 - 2.4, abs=1e-6)
    assert loss.weight == 3
    assert loss.total.item() / loss.weight == pytest.approx(-0.633333, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.5, 2.0, -2.4, 0.0),  # already better than asked: the incentive ends
        (0.5, 2.0, -1.0, -1.0),  # moved the wrong way: pulled back
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 3.0),
        (1.1, 2.0, -2.2, -2.2),  # inside the range nothing is clipped
        (0.9, -2.0, 1.8, 1.8),
    ],
)
def test_the_clip_gradient_table(ratio, advantage, loss, slope):
    result, logps_N, _ = step([ratio], [advantage], cliprange=0.2)
    result.total.backward()
    assert result.total.item() == pytest.approx(loss, abs=1e-12)
    assert logps_N.grad.item() == pytest.approx(slope, abs=1e-12)


def test_the_range_is_as_wide_above_as_below():
    up, _, _ = step([9.0], [1.0], cliprange=0.35)
    down, _, _ = step([0.01], [-1.0], cliprange=0.35)
    assert up.total.item() == pytest.approx(-1.35, abs=1e-12)
    assert down.total.item() == pytest.approx(0.65, abs=1e-12)


def test_the_first_inner_step_is_the_policy_gradient():
    loss, logps_N, _ = step([1, 1, 1, 1], [0.5, -2.0, 3.0, 0.0], lengths=[1, 3])
    loss.total.backward()
    assert logps_N.grad.tolist() == [-0.5, 2.0, -3.0, 0.0]
    metrics = combine([loss.metrics])
    assert metrics["val/ratio"] == metrics["val/ratio_max"] == 1
    assert metrics["policy/clipfrac_avg"] == metrics["policy/approxkl_avg"] == 0
    assert set(PPO.step_zero) >= {"val/ratio", "policy/clipfrac_avg"}
    assert PPO.step_zero["val/ratio"][0] == 1


def test_the_value_vector():
    loss, slope = value_step(1.0, 0.5, 2.0, cliprange_value=0.2)
    assert loss == pytest.approx(0.845, abs=1e-12)
    assert slope == 0


@pytest.mark.parametrize(
    ("value", "loss", "slope"),
    [
        (0.6, 0.5 * 1.4**2, -1.4),  # inside 0.5 ± 0.2
        (0.7001, 0.5 * 1.3**2, 0.0),  # outside, on the way to the target: no further credit
        (-0.5, 0.5 * 2.5**2, -2.5),  # outside, away from the target: pulled back
        (4.0, 0.5 * 2.0**2, 2.0),  # overshot by more than the clipped value misses
    ],
)
def test_the_value_clip_is_pessimistic(value, loss, slope):
    seen = value_step(value, 0.5, 2.0, cliprange_value=0.2)
    assert seen == pytest.approx((loss, slope), abs=1e-12)


def test_the_value_clip_is_about_the_old_value():
    loss, slope = value_step(1.0, 2.0, -1.0, cliprange_value=0.2)
    assert loss == pytest.approx(0.5 * 2.8**2, abs=1e-12)
    assert slope == 0


def test_how_often_a_value_left_its_range():
    moved = {"values": [1.0, 0.6, -0.3], "old_values": [0.5, 0.5, -0.6], "returns": [2, 2, 2]}
    for limit, share in ((0.2, 2 / 3), (0.4, 1 / 3), (None, 0.0)):
        loss, _, _ = step([1, 1, 1], [0, 0, 0], **moved, cliprange_value=limit)
        assert combine([loss.metrics])["val/clipfrac_avg"] == pytest.approx(share, abs=1e-6)


def test_the_value_clip_is_as_wide_below():
    loss, slope = value_step(-1.0, 0.5, -3.0, cliprange_value=0.2)
    assert loss == pytest.approx(0.5 * (0.3 + 3.0) ** 2, abs=1e-12)
    assert slope == 0


def test_without_a_value_range_it_is_half_the_squared_error():
    assert value_step(1.0, 0.5, 2.0, cliprange_value=None) == pytest.approx((0.5, -1.0), abs=1e-12)


def test_the_two_losses_add_up_with_their_coefficient():
    loss, _, _ = step(
        [0.5, 1, 1.8], [1, -1, 2], [1, 0, 0], [0.5, 0, 0], [2, 3, 0], vf_coef=0.3, lengths=[2, 1]
    )
    policy, value = -0.5 + 1 - 2.4, 0.845 + 4.5
    assert loss.total.item() == pytest.approx(policy + 0.3 * value, abs=1e-12)
    metrics = combine([loss.metrics])
    assert metrics["loss"] == pytest.approx((policy + 0.3 * value) / 3, abs=1e-6)
    assert metrics["loss/policy_avg"] == pytest.approx(policy / 3, abs=1e-6)
    assert metrics["loss/value_avg"] == pytest.approx(value / 3, abs=1e-6)


def test_diagnostics_of_the_drift():
    loss, _, _ = step([0.5, 1, 1.8, 1.5], [1, -1, 2, -1], entropy=[0.5, 1.0, 1.5, 3.0])
    metrics = combine([loss.metrics])
    assert metrics["policy/clipfrac_avg"] == pytest.approx(1 / 4)  # only the third one binds
    logs = [math.log(0.5), 0, math.log(1.8), math.log(1.5)]
    squares = sum(d * d for d in logs) / 2 / 4
    assert metrics["policy/approxkl_avg"] == pytest.approx(squares, abs=1e-6)
    assert metrics["val/ratio"] == pytest.approx(4.8 / 4, abs=1e-6)
    assert metrics["val/ratio_max"] == pytest.approx(1.8, abs=1e-6)
    assert metrics["policy/entropy_avg"] == pytest.approx(1.5, abs=1e-6)


def test_defaults_are_the_published_ones():
    assert PPO() == PPO(cliprange=0.2, cliprange_value=0.2, vf_coef=0.1)


@pytest.mark.parametrize("knob", [{"cliprange": 0}, {"cliprange_value": 0}, {"vf_coef": -0.1}])
def test_empty_ranges_are_refused(knob):
    with pytest.raises(ValidationError):
        PPO(**knob)


def test_the_kl_penalty_is_not_in_the_loss():
    assert (PPO.trains, PPO.unit, PPO.credit) == ("policy+value", "tokens", "gae")
    assert PPO.needs == {"sampled_logps_N", "advantages_N", "returns_N", "values_N"}


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (5.0, -2.0, 6.0, 0.0),  # beyond c: the loss ends at −c A
        (2.9, -2.0, 5.8, 5.8),  # not yet
        (0.5, -2.0, 1.6, 0.0),  # the ordinary clip stays
        (5.0, 2.0, -2.4, 0.0),  # a positive advantage knows no second end
        (0.1, 2.0, -0.2, -0.2),
    ],
)
def test_the_dual_clip_ends_what_a_far_ratio_may_cost(ratio, advantage, loss, slope):
    result, logps_N, _ = step([ratio], [advantage], dual_clip=3.0)
    result.total.backward()
    assert result.total.item() == pytest.approx(loss, abs=1e-12)
    assert logps_N.grad.item() == pytest.approx(slope, abs=1e-12)


def test_the_dual_clip_is_off_by_default_and_must_lie_above_1():
    assert PPO().dual_clip is None
    assert PPO().ptx_coef == 0
    for nonsense in (1.0, 0.5, -3.0, math.nan):
        with pytest.raises(ValidationError):
            PPO(dual_clip=nonsense)
