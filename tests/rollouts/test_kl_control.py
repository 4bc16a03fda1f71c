"""β from rollout to rollout: Ziegler et al.'s vector, steps by hand, and a policy that drifts."""

from __future__ import annotations

import math

import pytest
import torch
from test_collect import collector

from small_groups import random_groups
from truing.errors import UsageError
from truing.groups import TokenGroup
from truing.rollouts.credit.gae import GAE
from truing.rollouts.kl_control import KLController
from truing.training.method import resolve


def adaptive(value=0.2, target=0.1, horizon=100):
    return KLController("adaptive", value, target=target, horizon=horizon)


def after(control, kl, completions=10):
    control.update(kl, completions)
    return control.value


@pytest.mark.parametrize("kind", ["adaptive", "budget"])
def test_while_only_the_critic_learns_the_price_waits(kind):
    """Its KL of 0 is no news: a budget's ramp would run on, and the price be gone by its end."""
    control = KLController(kind, 0.2, target=6.0, horizon=100, rollouts=4)
    made = collector(credit=GAE(kl_coef=0.2), kl_controller=control, critic_rollouts=2)
    given = [TokenGroup(g.prompt_ids) for g in random_groups(1, 4, 0)]
    prices = [made.collect(given, seed).metrics["objective/kl_coef"] for seed in range(4)]
    assert prices[:3] == pytest.approx([0.2] * 3)
    assert prices[3] < 0.2
    assert control.seen == 2


def test_the_sheets_vector():
    """β = .2, target .1, KL .2, n = 10, horizon 100 -> 0.204."""
    assert after(adaptive(), 0.2) == pytest.approx(0.204, abs=1e-12)


@pytest.mark.parametrize(
    ("kl", "value"),
    [
        (0.1, 0.2),  # on target
        (0.11, 0.2 * (1 + 0.1 * 0.1)),  # a tenth above it
        (0.09, 0.2 * (1 - 0.1 * 0.1)),
        (50.0, 0.2 * (1 + 0.2 * 0.1)),  # errors are clipped to a fifth, either way
        (0.0, 0.2 * (1 - 0.2 * 0.1)),
        (-3.0, 0.2 * (1 - 0.2 * 0.1)),  # an estimate of KL may be negative
    ],
)
def test_errors_are_relative_and_clipped(kl, value):
    assert after(adaptive(), kl) == pytest.approx(value, abs=1e-12)


def test_more_completions_or_a_shorter_horizon_move_it_more():
    assert after(adaptive(), 1.0, completions=50) > after(adaptive(), 1.0, completions=10) > 0.2
    assert after(adaptive(horizon=1000), 1.0) < after(adaptive(horizon=100), 1.0)


def test_a_larger_target_asks_for_a_smaller_price():
    assert after(adaptive(target=1.0), 0.5) < 0.2 < after(adaptive(target=0.4), 0.5)


def test_fixed_stays():
    control = KLController("fixed", 0.3, target=1.0)
    for kl in (0.0, 5.0, 100.0):
        assert after(control, kl, completions=10_000) == 0.3


def test_a_budgets_first_steps_by_hand():
    """Target 6, 10 rollouts, spent over 6: planned are 1, 2, ... nats. 2 Δe + e/2, at most 1."""
    control = KLController("budget", 0.5, target=6.0, rollouts=10)
    logs = [math.log(after(control, kl)) - math.log(0.5) for kl in (0.0, 2.0, 9.0)]
    # e = −1/6: 2 · (−1/6) − 1/12; then e = 0: 2 · 1/6; then e = 1: 2.5, cut to 1
    assert logs == pytest.approx([-5 / 12, -1 / 12, 11 / 12], abs=1e-9)


def test_the_ramp_ends_at_the_target_after_six_tenths():
    control = KLController("budget", 0.5, target=6.0, rollouts=10)
    for planned in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.0, 6.0, 6.0, 6.0):
        assert after(control, planned) == pytest.approx(0.5)  # who keeps to the plan pays the same


def drifting(control, rollouts, gain, speed=0.2):
    """KL per rollout of a policy that moves a share of the way to where β lets it: gain/β²."""
    kl, seen = 0.0, []
    for _ in range(rollouts):
        seen.append(kl)
        control.update(kl, 64)
        kl += speed * (gain / control.value**2 - kl)
    return seen


@pytest.mark.parametrize("speed", [0.05, 0.1, 0.25])
@pytest.mark.parametrize("start", [0.1, 1.0])
@pytest.mark.parametrize("gain", [0.01, 0.3])
@pytest.mark.parametrize("target", [2.0, 6.0])
def test_a_budget_is_spent_and_held_from_any_first_price(target, gain, start, speed):
    control = KLController("budget", start, target=target, rollouts=60)
    seen = drifting(control, 60, gain, speed)
    assert all(abs(kl / target - 1) < 0.2 for kl in seen[-10:])
    if gain / start**2 < target:  # where the first price does not already overspend
        assert max(seen) < 1.2 * target
        planned = [min(1.0, (i + 1) / 36) for i in range(60)]
        late = [abs(kl / target - p) for kl, p in zip(seen, planned, strict=True)][25:]
        assert max(late) < 0.15  # before that it is behind, where the price begins far off


def test_a_larger_budget_goes_further_and_costs_less():
    ends = []
    for target in (1.0, 3.0, 9.0):
        control = KLController("budget", 0.1, target=target, rollouts=40)
        ends.append((drifting(control, 40, 0.1)[-1], control.value))
    assert [kl for kl, _ in ends] == sorted(kl for kl, _ in ends)
    assert [beta for _, beta in ends] == sorted((beta for _, beta in ends), reverse=True)


PROMPTS = [TokenGroup(g.prompt_ids) for g in random_groups(1, 5, 0)]


def test_a_rollout_pays_the_price_it_was_drawn_under_and_the_next_one_the_new():
    control = adaptive(value=0.5, target=1.0, horizon=100)
    made = collector(
        kl_controller=control,
        credit=GAE(kl_coef=7.0, whiten_advantages=False, lam=1.0),
        reference_logps=lambda batch: torch.full((batch.size_N,), -1.25),  # k1 = 0.25 a token
    )
    value = 0.5
    for seed in (3, 4, 5):
        rollout = made.collect(PROMPTS, seed)
        assert rollout.metrics["objective/kl_coef"] == pytest.approx(value)
        lengths = [len(c.ids) for g in rollout.groups for c in g.completions]
        kl = 0.25 * sum(lengths) / len(lengths)  # nats a completion, not a token
        assert rollout.metrics["objective/kl"] == pytest.approx(kl)
        for batch in (b for part in rollout.minibatches for b in part):
            left = batch["advantages_N"][batch.last_C] - batch["scores_C"]
            torch.testing.assert_close(left, torch.full_like(left, -value * 0.25))
        value *= 1 + max(-0.2, min(0.2, kl - 1)) * 10 / 100  # ten completions
    assert value != 0.5


@pytest.mark.parametrize("kind", ["adaptive", "budget"])
@pytest.mark.parametrize(
    ("knobs", "words"),
    [({"kl_coef": 0.1}, "needs kl_target"), ({"kl_coef": 0.0, "kl_target": 6.0}, "it is 0")],
)
def test_a_controller_without_target_or_price_is_refused(kind, knobs, words):
    with pytest.raises(UsageError, match=words):
        resolve("s", {"method": "ppo", "reward": "r", "kl_control": kind} | knobs, "here")


def test_what_the_recipe_says_reaches_the_rule():
    """Published defaults: a horizon of 10,000 completions."""
    method = resolve("s", {"method": "ppo", "reward": "r"}, "here")
    assert (method.training.kl_control, method.training.kl_horizon) == ("fixed", 10_000)
    assert (method.credit.kl_coef, method.training.kl_target) == (0.05, None)
