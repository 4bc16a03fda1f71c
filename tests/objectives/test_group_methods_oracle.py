"""Policy-gradient objectives without a critic, in scalars (sheet 1.4, 1.5, 1.6).

Each loss is a function of every token's log-prob; what is detached (advantages, clipped weights)
is taken at the point itself.
"""

import math

import pytest
import torch
from points import Point, agree, judge, label
from pydantic import ValidationError
from scalar import clip, mean, sigmoid

from truing import objectives

SAMPLED = [[-0.4, -1.3], [-1.2, -0.5, -2.2], [-0.9], [-0.7, -1.6, -0.3, -2.4]]
LOG_RATIOS = [[0.5, -0.1], [-0.6, 0.05, 0.3], [0.9], [-0.15, 0.12, -0.5, 0.07]]
ADVANTAGES = [[1.0, 0.5], [-0.5, -1.0, -0.25], [-2.0], [0.8, -0.3, 1.5, 0.6]]
DRIFT = [[0.6, -0.4], [-0.2, 0.7, 0.1], [-1.1], [0.3, -0.8, 0.2, 1.4]]


def plus(rows, others, sign=1):
    return [
        [a + sign * b for a, b in zip(*pair, strict=True)]
        for pair in zip(rows, others, strict=True)
    ]


POLICY = plus(SAMPLED, LOG_RATIOS)
FAR = Point(
    POLICY,
    {
        "sampled_logps_N": SAMPLED,
        "advantages_N": ADVANTAGES,
        "reference_logps_N": plus(POLICY, DRIFT, -1),
    },
    [0, 0, 1, 1],
)
"""Ratios 0.55 to 2.46: both ends of every range are crossed with both signs."""
NEAR_POLICY = plus(SAMPLED, [[1e-2 * d for d in row] for row in LOG_RATIOS])
NEAR = Point(
    NEAR_POLICY,
    FAR.columns | {"reference_logps_N": plus(NEAR_POLICY, DRIFT, -1)},
    [0, 0, 1, 1],
)
N, C = 10, 4


def pooled(losses, aggregation="token", max_completion_length=64):
    """The sum that is divided by the weight: N for "token", C otherwise."""
    if aggregation == "sequence":
        return sum(mean(row) for row in losses)
    total = sum(sum(row) for row in losses)
    return total / max_completion_length if aggregation == "constant" else total


def reinforce(now, a, old, ref, then):
    return -a * now


def ppo_like(w, a, low, high, dual_clip=None):
    loss = max(-a * w, -a * clip(w, 1 - low, 1 + high))
    return min(loss, -dual_clip * a) if dual_clip is not None and a < 0 else loss


def grpo(now, a, old, ref, then, epsilon=0.2, epsilon_high=None, beta=0.04,
         kl_estimator="weighted_k3", dual_clip=None):  # fmt: skip
    w, d = math.exp(now - old), now - ref
    high = epsilon if epsilon_high is None else epsilon_high
    k3 = math.exp(-d) - 1 + d
    penalty = {"weighted_k3": w * k3, "k3": k3, "k2": d * d / 2}[kl_estimator]
    return ppo_like(w, a, epsilon, high, dual_clip) + beta * penalty


def cispo(now, a, old, ref, then, ratio_max=5.0, ratio_min=None):
    return -clip(math.exp(then - old), ratio_min or 0.0, ratio_max) * a * now


def sapo(now, a, old, ref, then, tau_positive=1.0, tau_negative=1.05):
    tau = tau_positive if a > 0 else tau_negative
    return -4 / tau * sigmoid(tau * (math.exp(now - old) - 1)) * a


CASES = [
    ("reinforce", reinforce, {}, "token"),
    ("grpo", grpo, {}, "sequence"),
    ("grpo", grpo, {"epsilon": 0.1, "epsilon_high": 0.5, "beta": 0.0}, "sequence"),
    ("grpo", grpo, {"kl_estimator": "k3", "beta": 0.3}, "sequence"),
    ("grpo", grpo, {"kl_estimator": "k2", "beta": 0.3}, "sequence"),
    ("grpo", grpo, {"kl_estimator": "weighted_k3", "beta": 0.3}, "sequence"),
    ("grpo", grpo, {"dual_clip": 2.0, "beta": 0.0}, "sequence"),
    ("cispo", cispo, {}, "token"),
    ("cispo", cispo, {"ratio_max": 1.3}, "token"),
    ("cispo", cispo, {"ratio_max": 1.3, "ratio_min": 0.8}, "token"),
    ("sapo", sapo, {}, "sequence"),
    ("sapo", sapo, {"tau_positive": 0.4, "tau_negative": 2.5}, "sequence"),
]
AGGREGATIONS = ("token", "sequence", "sequence_sum", "constant")
precisions = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32], ids=["double", "single"]
)
both_points = pytest.mark.parametrize("point", [FAR, NEAR], ids=["far", "near"])


def over_tokens(point, of_token, fields, aggregation, length=64):
    names = ("advantages_N", "sampled_logps_N", "reference_logps_N")
    rest = [*[point.columns[name] for name in names], point.policy]

    def loss(policy):
        rows = [
            [of_token(*token, **fields) for token in zip(*rows, strict=True)]
            for rows in zip(policy, *rest, strict=True)
        ]
        return pooled(rows, aggregation, length)

    return loss


@pytest.mark.parametrize(("name", "scalar", "fields", "aggregation"), CASES, ids=label)
@both_points
@precisions
def test_value_and_gradient(name, scalar, fields, aggregation, point, dtype):
    loss = over_tokens(point, scalar, fields, aggregation)
    weight = N if aggregation == "token" else C
    agree(objectives.find(name)(**fields), point, loss, weight, dtype)


@pytest.mark.parametrize(
    ("name", "scalar"), [(c[0], c[1]) for c in CASES[:2] + CASES[7:11:3]], ids=label
)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_aggregation(name, scalar, aggregation):
    fields = {"aggregation": aggregation}
    if aggregation == "constant":
        fields["max_completion_length"] = 7
    loss = over_tokens(FAR, scalar, {}, aggregation, 7)
    agree(objectives.find(name)(**fields), FAR, loss, N if aggregation == "token" else C)


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


@pytest.mark.parametrize("name", ["reinforce", "rloo", "grpo", "gspo", "cispo", "gmpo", "sapo"])
def test_no_advantage_no_pull(name):
    fields = {"beta": 0.0} if name == "grpo" else {}
    still = FAR.with_columns(advantages_N=[[0.0] * len(row) for row in SAMPLED])
    loss, gradient = judge(objectives.find(name)(**fields), still)
    assert loss.total.item() == 0
    assert gradient == [0.0] * N


@pytest.mark.parametrize("name", ["rloo", "grpo", "gspo", "cispo", "gmpo", "sapo"])
def test_the_first_inner_step_is_the_policy_gradient(name):
    """With w = 1 every method's pull is REINFORCE's, under the method's own averaging."""
    constant = [[x] * len(row) for x, row in zip((1.0, -0.5, -2.0, 0.7), SAMPLED, strict=True)]
    point = Point(SAMPLED, FAR.columns | {"advantages_N": constant}, [0, 0, 1, 1])
    fields = {"beta": 0.0} if name == "grpo" else {}
    _, gradient = judge(objectives.find(name)(**fields), point)
    share = {"rloo": lambda n: 1, "cispo": lambda n: 1}.get(name, lambda n: 1 / n)
    expected = [-a[0] * share(len(a)) for a in constant for _ in a]
    assert gradient == pytest.approx(expected, abs=1e-12)


def test_grpo_reads_the_reference_only_where_beta_is_positive():
    cls = objectives.find("grpo")
    assert "reference_logps_N" in cls().required
    assert "reference_logps_N" not in cls(beta=0.0).required
    nan = [[math.nan] * len(row) for row in SAMPLED]
    clean, _ = judge(cls(beta=0.0), FAR)
    poisoned, gradient = judge(cls(beta=0.0), FAR.with_columns(reference_logps_N=nan))
    assert poisoned.total.item() == clean.total.item()
    assert all(math.isfinite(g) for g in gradient)


DEFAULTS = {
    "reinforce": {"aggregation": "token", "max_completion_length": 64},
    "rloo": {"cliprange": 0.2},
    "grpo": {"epsilon": 0.2, "epsilon_high": None, "beta": 0.04, "kl_estimator": "weighted_k3",
             "aggregation": "sequence", "dual_clip": None, "max_completion_length": 64},
    "gspo": {"epsilon": 3e-4, "epsilon_high": 4e-4, "level": "sequence"},
    "cispo": {"ratio_max": 5.0, "ratio_min": None, "aggregation": "token",
              "max_completion_length": 64},
    "gmpo": {"log_clip": 0.4},
    "sapo": {"tau_positive": 1.0, "tau_negative": 1.05, "aggregation": "sequence",
             "max_completion_length": 64},
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name):
    cls = objectives.find(name)
    assert cls() == cls(**DEFAULTS[name])
    assert cls.trains == "policy"
    assert {"advantages_N"} <= cls().required
    with pytest.raises(ValidationError):
        cls(aggregation="mean", level="word")
