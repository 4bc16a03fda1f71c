"""Policy-gradient objectives without a critic, in scalars (sheet 1.4, 1.5, 1.6).

Each loss is a function of every token's log-prob; what is detached (advantages, clipped weights)
is taken at the point itself.
"""

import math

import pytest
import torch
from points import FAR, NEAR, SAMPLED, Point, agree, judge, label
from pydantic import ValidationError
from scalar import clip, mean, ppo_like, sigmoid

from truing import objectives
from truing.batch import combine

N, C = 10, 4


def pooled(losses, aggregation="token", max_completion_length=64):
    """The sum that is divided by the weight: N for "token", C otherwise."""
    if aggregation == "sequence":
        return sum(mean(row) for row in losses)
    total = sum(sum(row) for row in losses)
    return total / max_completion_length if aggregation == "constant" else total


def reinforce(now, a, old, ref, then):
    return -a * now


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


def shares(ratios, advantages, low, high):
    """Where a clip has ended the gradient, out of all: below, above, either."""
    pairs = list(zip(ratios, advantages, strict=True))
    below = mean([float(w < low and a < 0) for w, a in pairs])
    above = mean([float(w > high and a > 0) for w, a in pairs])
    return [below, above, below + above]


def test_how_much_is_clipped_and_how_far_the_policy_is():
    columns = FAR.columns
    rows = zip(FAR.policy, columns["sampled_logps_N"], columns["advantages_N"], strict=True)
    logs, advantages, sums, means, of_row = [], [], [], [], []
    for now, old, a in rows:
        drift = [x - y for x, y in zip(now, old, strict=True)]
        logs += drift
        advantages += a
        sums.append(math.exp(sum(drift)))
        means.append(math.exp(mean(drift)))
        of_row.append(mean(a))
    ratios = [math.exp(d) for d in logs]
    spread = [m for m, row in zip(of_row, columns["advantages_N"], strict=True) for _ in row]
    wide = {"epsilon": 0.07, "epsilon_high": 0.12}
    exact = [mean([float(w < 0.75) for w in ratios]), mean([float(w > 1.3) for w in ratios])]
    expected = {
        "grpo": (wide, ratios, shares(ratios, advantages, 0.93, 1.12)),
        "rloo": ({"cliprange": 0.15}, sums, shares(sums, of_row, 0.85, 1.15)),
        "gspo": (wide, means, shares(means, of_row, 0.93, 1.12)),
        "gmpo": ({"log_clip": 0.1}, ratios, shares(logs, spread, -0.1, 0.1)),
        "cispo": ({"ratio_max": 1.3, "ratio_min": 0.75}, ratios, [*exact, sum(exact)]),
    }
    for name, (fields, compared, clipped) in expected.items():
        metrics = combine([judge(objectives.find(name)(**fields), FAR)[0].metrics])
        found = [metrics[f"clip_ratio/{end}_mean"] for end in ("low", "high", "region")]
        assert found == pytest.approx(clipped, abs=1e-6), name
        assert clipped[0] > 0, name
        assert clipped[1] > 0, name
        assert metrics["val/ratio"] == pytest.approx(mean(compared), abs=1e-6)
        assert metrics["val/ratio_max"] == pytest.approx(max(compared), abs=1e-6)
        squares = mean([d * d / 2 for d in logs])
        assert metrics["policy/approxkl_avg"] == pytest.approx(squares, abs=1e-6)


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
