"""Objectives over scored groups of K completions, in scalars (sheet 1.7: NCA, InfoNCA, EXO)."""

import math

import pytest
import torch
from points import Point, agree, judge, label
from scalar import log_sigmoid, log_softmax, mean, sigmoid, softmax

from truing import objectives
from truing.batch import combine

GROUPS_A = Point(
    [[-0.5, -1.25], [-0.75, -2.0, -0.3], [-1.6], [-0.2, -0.9, -1.1, -0.4], [-0.6, -2.1]],
    {
        "reference_logps_N": [
            [-0.8, -0.6],
            [-1.4, -1.7, -0.9],
            [-1.1],
            [-0.7, -0.3, -1.9, -0.2],
            [-2.6, -1.9],
        ],
        "scores_C": [0.4, -1.1, 2.0, 0.4, 1.3],
    },
    [0, 1, 0, 0, 1],
)
"""A group of three, with two scores alike, and one of two; they lie mixed."""

GROUPS_B = Point(
    [[-3.5, -0.1], [-0.05], [-1.0, -4.0, -0.3], [-0.6], [-0.7, -0.8], [-2.5]],
    {
        "reference_logps_N": [
            [-1.5, -0.2],
            [-2.3],
            [-0.5, -6.5, -0.2],
            [-1.6],
            [-1.1, -0.3],
            [-0.8],
        ],
        "scores_C": [3.0, -0.5, 0.25, -2.0, 1.5, 0.75],
    },
    [2, 1, 1, 2, 0, 1],
)
"""Groups of one, three and two."""


def infonca(rewards, scores, alpha):
    goal, logp = softmax([s / alpha for s in scores]), log_softmax(rewards)
    return -sum(g * lp for g, lp in zip(goal, logp, strict=True))


def nca(rewards, scores, alpha):
    goal = softmax([s / alpha for s in scores])
    pull = -sum(g * log_sigmoid(r) for g, r in zip(goal, rewards, strict=True))
    return pull - sum(log_sigmoid(-r) for r in rewards) / len(rewards)


def exo(rewards, scores, alpha):
    policy, goal = log_softmax(rewards), log_softmax([s / alpha for s in scores])
    return sum(math.exp(p) * (p - g) for p, g in zip(policy, goal, strict=True))


CASES = [
    ("infonca", infonca, "alpha", 0.01, 1.0),
    ("infonca", infonca, "alpha", 0.7, 0.4),
    ("nca", nca, "alpha", 0.01, 1.0),
    ("nca", nca, "alpha", 0.7, 0.4),
    ("exo", exo, "beta_reward", 0.1, 1.0),
    ("exo", exo, "beta_reward", 0.7, 2.5),
]


def over_groups(point, of_group, beta, temperature):
    def loss(policy):
        total = 0.0
        for group in sorted(set(point.groups)):
            members = [i for i, g in enumerate(point.groups) if g == group]
            rewards = [beta * point.sentence(i, policy).rho for i in members]
            total += of_group(rewards, [point.columns["scores_C"][i] for i in members], temperature)
        return total

    return loss


@pytest.mark.parametrize(("name", "scalar", "knob", "beta", "temperature"), CASES, ids=label)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("point", [GROUPS_A, GROUPS_B], ids=["3+2", "1+3+2"])
def test_value_and_gradient(name, scalar, knob, beta, temperature, point, dtype):
    objective = objectives.find(name)(**{"beta": beta, knob: temperature})
    loss = over_groups(point, scalar, beta, temperature)
    agree(objective, point, loss, weight=len(set(point.groups)), dtype=dtype)


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("infonca", {"beta": 0.01, "alpha": 1.0}),
        ("nca", {"beta": 0.01, "alpha": 1.0}),
        ("exo", {"beta": 0.1, "beta_reward": 1.0}),
    ],
)
def test_defaults(name, defaults):
    cls = objectives.find(name)
    assert cls() == cls(**defaults)
    assert {"scores_C", "reference_logps_N"} <= cls().required
    assert cls.unit == "groups"


def pair(scores):
    columns = {"reference_logps_N": [[-0.8, -0.6], [-1.9]], "scores_C": scores}
    return Point([[-0.5, -1.25], [-0.75]], columns, [0, 0])


def test_infonca_of_a_decided_pair_is_dpo():
    decided, _ = judge(objectives.find("infonca")(beta=0.3, alpha=1e-3), pair([1.0, 0.0]))
    chosen = pair([1, 0]).with_columns(chosen_G=[0], rejected_G=[1])
    dpo, _ = judge(objectives.find("dpo")(beta=0.3), chosen)
    assert decided.total.item() == pytest.approx(dpo.total.item(), abs=1e-12)


def test_nca_of_a_decided_pair_is_nca_pair():
    decided, _ = judge(objectives.find("nca")(beta=0.3, alpha=1e-3), pair([1.0, 0.0]))
    chosen = pair([1, 0]).with_columns(chosen_G=[0], rejected_G=[1])
    other, _ = judge(objectives.find("nca_pair")(beta=0.3), chosen)
    assert decided.total.item() == pytest.approx(other.total.item(), abs=1e-12)


def test_exo_of_a_pair_is_exo_pair_at_the_smoothing_its_scores_imply():
    listed, _ = judge(objectives.find("exo")(beta=0.3, beta_reward=0.5), pair([1.0, 0.0]))
    chosen = pair([1, 0]).with_columns(chosen_G=[0], rejected_G=[1])
    smoothing = sigmoid(-2.0)
    other, _ = judge(objectives.find("exo_pair")(beta=0.3, label_smoothing=smoothing), chosen)
    assert listed.total.item() == pytest.approx(other.total.item(), abs=1e-10)


@pytest.mark.parametrize(("name", "moves"), [("infonca", False), ("exo", False), ("nca", True)])
def test_a_constant_per_prompt_in_the_reference_matters_only_to_nca(name, moves):
    reference = [[*row] for row in GROUPS_A.columns["reference_logps_N"]]
    for i, row in enumerate(reference):
        row[0] += (1.5, -2.0)[GROUPS_A.groups[i]]
    objective = objectives.find(name)(beta=0.3)
    here, _ = judge(objective, GROUPS_A)
    there, _ = judge(objective, GROUPS_A.with_columns(reference_logps_N=reference))
    assert (abs(here.total.item() - there.total.item()) > 1e-3) == moves


@pytest.mark.parametrize("name", ["infonca", "exo", "nca"])
def test_a_constant_per_prompt_in_the_scores_never_matters(name):
    objective = objectives.find(name)(beta=0.3)
    scores = [
        s + (3.0, -7.0)[g]
        for s, g in zip(GROUPS_A.columns["scores_C"], GROUPS_A.groups, strict=True)
    ]
    here, _ = judge(objective, GROUPS_A)
    there, _ = judge(objective, GROUPS_A.with_columns(scores_C=scores))
    assert there.total.item() == pytest.approx(here.total.item(), abs=1e-12)


def test_exo_is_zero_where_the_policy_is_the_tilted_reference():
    tilted = [
        [r[0] + s, *r[1:]]
        for r, s in zip(
            GROUPS_A.columns["reference_logps_N"], GROUPS_A.columns["scores_C"], strict=True
        )
    ]
    point = Point(tilted, GROUPS_A.columns, GROUPS_A.groups)
    loss, gradient = judge(objectives.find("exo")(beta=0.5, beta_reward=2.0), point)
    assert loss.total.item() == pytest.approx(0.0, abs=1e-12)
    assert gradient == pytest.approx([0.0] * len(gradient), abs=1e-12)


@pytest.mark.parametrize("name", ["infonca", "nca", "exo"])
def test_metrics_compare_every_pair_of_a_group_whose_scores_differ(name):
    loss, _ = judge(objectives.find(name)(beta=0.3), GROUPS_A)
    metrics = combine([loss.metrics])
    rewards = [0.3 * GROUPS_A.sentence(i).rho for i in range(5)]
    assert metrics["rewards/mean"] == pytest.approx(mean(rewards), abs=1e-6)
    margins = [rewards[i] - rewards[j] for i, j in [(2, 0), (2, 3), (4, 1)]]
    assert metrics["rewards/margins"] == pytest.approx(mean(margins), abs=1e-6)
    assert metrics["rewards/accuracies"] == pytest.approx(
        mean([float(m > 0) for m in margins]), abs=1e-6
    )
    assert 0 < metrics["rewards/accuracies"] < 1


def test_far_scores_and_far_policies_stay_finite():
    far = Point(
        [[-1e4], [-1.0], [-3.0]],
        {"reference_logps_N": [[-1.0], [-1e4], [-3.0]], "scores_C": [1e4, -1e4, 0.0]},
        [0, 0, 0],
    )
    for name in ("infonca", "nca", "exo"):
        loss, gradient = judge(objectives.find(name)(), far, torch.float32)
        assert loss.total.isfinite()
        assert all(math.isfinite(g) for g in gradient)
