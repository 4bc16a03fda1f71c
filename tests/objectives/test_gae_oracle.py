"""GAE against upstream vectors and the direct sum (algorithm sheet 1.3, 5.2, O6; Appendix A).

A reward per token is planted through the KL term: with kl_coef = 1, sampled = −R, reference = 0.
"""

import dataclasses
import statistics

import pytest
import torch
from flat_batches import make_batch
from pydantic import ValidationError

from truing.batch import combine
from truing.rollouts.credit.gae import GAE


def rollout(lengths, rewards, values, scores=None, finished=None, dtype=torch.float64):
    """Completions whose tokens earn `rewards`, and a score each (0 by default)."""
    return make_batch(
        lengths,
        None,
        dtype,
        sampled_logps_N=[-r for r in rewards],
        reference_logps_N=[0.0] * len(rewards),
        values_N=values,
        scores_C=scores or [0.0] * len(lengths),
        finished_C=finished or [True] * len(lengths),
    )


def credit(*batches, **knobs):
    """Credited batches; raw advantages and unit KL cost unless told otherwise."""
    return GAE(**{"kl_coef": 1.0, "whiten_advantages": False} | knobs)(list(batches))


def column(batches, name):
    return torch.cat([batch[name] for batch in batches]).tolist()


def close(seen, expected, tolerance=1e-12):
    assert seen == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(
    ("gamma", "lam", "returns"),
    [(1, 1, [6, 5, 3]), (0.5, 1, [2.75, 3.5, 3]), (1, 0.5, [3.625, 4.25, 3])],
)
def test_returns_of_the_skyrl_vector(gamma, lam, returns):
    seen, _ = credit(rollout([3], [1, 2, 3], [0.5, 1, 1.5]), gamma=gamma, lam=lam)
    close(column(seen, "returns_N"), returns)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("lam", "advantages"),
    [(0.95, [0.45125, 0.475, 0.5]), (0, [0, 0, 0.5]), (1, [0.5, 0.5, 0.5])],
)
def test_a_score_at_the_end_is_handed_back_by_lambda(lam, advantages, dtype):
    seen, _ = credit(rollout([3], [0, 0, 0], [0.5] * 3, scores=[1], dtype=dtype), lam=lam)
    close(column(seen, "advantages_N"), advantages, 1e-6 if dtype == torch.float32 else 1e-12)
    close(column(seen, "returns_N"), [a + 0.5 for a in advantages], 1e-6)


def test_lambda_0_is_the_temporal_difference():
    seen, _ = credit(rollout([3], [0, 0, 0], [1, 2, 3], scores=[5]), lam=0)
    close(column(seen, "advantages_N"), [1, 1, 2])


def test_lambda_1_is_the_return_less_the_value():
    seen, _ = credit(rollout([4], [0.3, -1.0, 2.0, 0.25], [9, -4, 1, 7], scores=[3]), lam=1)
    close(column(seen, "advantages_N"), [4.55 - 9, 4.25 + 4, 5.25 - 1, 3.25 - 7])


def test_both_discounts_of_the_torchtune_vector():
    seen, _ = credit(rollout([4], [0, 0, 0, 0], [0, 0, 0, 1], scores=[1]), gamma=0.9, lam=0.95)
    close(column(seen, "returns_N"), [0.9**3 * 0.95**2, 0.9**2 * 0.95, 0.9, 1])


def test_the_sum_over_all_later_surprises():
    gamma, lam = 0.8, 0.6
    rewards, values, score = [0.5, -0.25, 1.0, -2.0], [0.1, 0.7, -0.3, 0.4], 1.5
    following = [*values[1:], 0.0]
    earned = [*rewards[:-1], rewards[-1] + score]
    surprise = [r + gamma * n - v for r, n, v in zip(earned, following, values, strict=True)]
    expected = [sum((gamma * lam) ** (u - t) * surprise[u] for u in range(t, 4)) for t in range(4)]
    seen, _ = credit(rollout([4], rewards, values, scores=[score]), gamma=gamma, lam=lam)
    close(column(seen, "advantages_N"), expected)


def test_the_shaped_reward_of_the_torchtune_vector():
    batch = make_batch(
        [3, 3, 3],
        scores_C=[1, 2, 3],
        finished_C=[1, 1, 1],
        values_N=[0] * 9,
        sampled_logps_N=[-1.1] * 3 + [-1.2] * 3 + [-1.3] * 3,
        reference_logps_N=[-1] * 9,
    )
    seen, _ = credit(batch, kl_coef=0.5, gamma=0)  # γ = 0: each return is its own reward
    close(column(seen, "returns_N"), [0.05, 0.05, 1.05, 0.1, 0.1, 2.1, 0.15, 0.15, 3.15])


def test_the_score_lands_on_the_last_real_token_of_each_length():
    seen, _ = credit(rollout([1, 3, 2], [0] * 6, [0] * 6, scores=[5, 7, 11]), gamma=0)
    close(column(seen, "returns_N"), [5, 0, 0, 7, 0, 11])


def test_drifting_away_from_the_reference_costs():
    batch = make_batch(
        [2],
        scores_C=[0],
        finished_C=[1],
        values_N=[0, 0],
        sampled_logps_N=[-0.5, -3.0],
        reference_logps_N=[-2.5, -2.0],
    )
    seen, _ = credit(batch, kl_coef=0.1, gamma=0)
    close(column(seen, "returns_N"), [-0.2, 0.1])


def test_completions_do_not_see_each_other():
    together = rollout([2, 1, 3], [1, 2, 4, 8, 16, 32], [0.5, -1, 2, 0.25, 1, 3], [3, -5, 7])
    alone = [
        rollout([2], [1, 2], [0.5, -1], [3]),
        rollout([1], [4], [2], [-5]),
        rollout([3], [8, 16, 32], [0.25, 1, 3], [7]),
    ]
    knobs = {"gamma": 0.9, "lam": 0.7}
    seen, apart = credit(together, **knobs)[0], credit(*alone, **knobs)[0]
    assert len(apart) == 3
    for name in ("advantages_N", "returns_N"):
        close(column(seen, name), column(apart, name))


@pytest.mark.parametrize("split", [False, True], ids=["one batch", "two batches"])
def test_whitening_is_over_the_whole_rollout_and_after_the_returns(split):
    raw, values = [3.0, 7.0, 1.0, 2.0, 12.0], [1.0, 0.5, -2.0, 0.0, 4.0]
    rewards = [a + v for a, v in zip(raw, values, strict=True)]
    batches = (
        [rollout([1, 1], rewards[:2], values[:2]), rollout([1] * 3, rewards[2:], values[2:])]
        if split
        else [rollout([1] * 5, rewards, values)]
    )
    seen, _ = credit(*batches, whiten_advantages=True)
    expected = [(a - 5) / statistics.stdev(raw) for a in raw]
    close(column(seen, "advantages_N"), expected, 1e-8)
    close(column(seen, "returns_N"), rewards)


def test_whitening_removes_the_mean():
    seen, _ = credit(rollout([1] * 3, [1, 2, 3], [0] * 3), whiten_advantages=True)
    close(column(seen, "advantages_N"), [-1, 0, 1], 1e-7)


@pytest.mark.parametrize("rewards", [[4.0], [2.0, 2.0, 2.0]], ids=["one token", "all equal"])
def test_whitening_survives_what_does_not_vary(rewards):
    batch = rollout([1] * len(rewards), rewards, [0] * len(rewards))
    seen, _ = credit(batch, whiten_advantages=True)
    close(column(seen, "advantages_N"), [0.0] * len(rewards))


def test_the_missing_stop_token_is_charged_to_those_that_miss_it():
    batch = rollout([2, 1, 1], [0] * 4, [0] * 4, scores=[3, 5, -2], finished=[False, True, False])
    seen, metrics = credit(batch, gamma=0, missing_eos_penalty=1.25)
    close(column(seen, "returns_N"), [0, 1.75, 5, -3.25])
    close(column(credit(batch, gamma=0)[0], "returns_N"), [0, 3, 5, -2])
    close(combine([metrics])["completions/clipped_ratio"], 2 / 3, 1e-6)
    close(seen[0]["scores_C"].tolist(), [3, 5, -2])  # the reward's own word stays


def test_metrics_are_means_over_the_completions_of_all_batches():
    first = make_batch(
        [2, 1],
        scores_C=[4, 1],
        finished_C=[1, 1],
        values_N=[0] * 3,
        sampled_logps_N=[-1, -2, -0.5],
        reference_logps_N=[-2, -2.5, -3],
    )
    second = make_batch(
        [3],
        scores_C=[-2],
        finished_C=[1],
        values_N=[0] * 3,
        sampled_logps_N=[-1, -1, -4],
        reference_logps_N=[-0.5, -2, -1],
    )
    metrics = combine([credit(first, second, kl_coef=0.2)[1]])
    drift = (1.5 + 2.5 - 2.5) / 3
    close(metrics["objective/kl"], drift, 1e-6)
    close(metrics["objective/entropy"], (3 + 0.5 + 6) / 3, 1e-6)
    close(metrics["objective/scores"], 1.0, 1e-6)
    close(metrics["objective/non_score_reward"], -0.2 * drift, 1e-6)
    close(metrics["objective/rlhf_reward"], 1.0 - 0.2 * drift, 1e-6)
    close(metrics["completions/mean_length"], 2, 1e-6)


@pytest.mark.parametrize(
    ("values", "explained"), [([3, -1, 4], 1.0), ([0, 0, 0], 0.0), ([-3, 1, -4], -3.0)], ids=str
)
def test_explained_variance_of_the_values(values, explained):
    metrics = combine([credit(rollout([1] * 3, [3, -1, 4], values))[1]])
    close(metrics["val/explained_variance"], explained, 1e-6)


def test_nothing_else_changes_and_nothing_takes_a_gradient():
    batch = rollout([2, 1], [1, 2, 3], [0.5, 1, 1.5], scores=[1, 2])
    before = {name: v.clone() for name, v in batch.columns.items()}
    wanted = ("sampled_logps_N", "values_N")
    live = batch.with_columns(**{name: batch[name].requires_grad_() for name in wanted})
    (seen,), metrics = credit(live, whiten_advantages=True)
    assert set(seen.columns) == {*before, "advantages_N", "returns_N"}
    for name, value in before.items():
        assert torch.equal(seen[name], value)
    assert not seen["advantages_N"].requires_grad
    assert not seen["returns_N"].requires_grad
    assert not any(metric.total.requires_grad for metric in metrics.values())
    assert set(batch.columns) == set(before)


def test_defaults_are_the_published_ones():
    assert GAE() == GAE(
        kl_coef=0.05, gamma=1.0, lam=0.95, whiten_advantages=True, missing_eos_penalty=None
    )


@pytest.mark.parametrize(
    "knob",
    [
        {"gamma": 1.01},
        {"gamma": -0.1},
        {"lam": 1.01},
        {"lam": -0.1},
        {"kl_coef": -1},
        {"missing_eos_penalty": -1},
        {"beta": 1},
    ],
    ids=str,
)
def test_nonsense_is_refused(knob):
    with pytest.raises(ValidationError):
        GAE(**knob)


def test_every_knob_is_explained():
    for field in dataclasses.fields(GAE):
        assert len(GAE.__pydantic_fields__[field.name].description or "") > 20
