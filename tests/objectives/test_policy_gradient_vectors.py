"""Vectors of other libraries' tests (algorithm sheet 5.2), through the production classes."""

import math
from itertools import pairwise

import pytest
import torch
from points import Point, judge

from truing import objectives, ops

LN = math.log


def tokens(ratios, advantages, logps=None, cut=None):
    """Tokens whose ratio to the sampler is given; log-probs −1 at the sampler by default."""
    policy = logps or [LN(w) - 1 for w in ratios]
    sampled = [p - LN(w) for p, w in zip(policy, ratios, strict=True)]
    zeros = [0.0] * len(ratios)
    ends = [0, *(cut or []), len(ratios)]

    def split(row):
        return [row[a:b] for a, b in pairwise(ends)]

    names = ("advantages_N", "sampled_logps_N", "reference_logps_N", "values_N", "returns_N")
    rows = (advantages, sampled, policy, zeros, zeros)
    return Point(split(policy), dict(zip(names, map(split, rows), strict=True)))


def mean_loss(name, point, dtype=torch.float64, **fields):
    loss, _ = judge(objectives.find(name)(**fields), point, dtype)
    return loss.total.item() / loss.weight


def ppo_loss(point, **fields):
    """PPO's policy part: the values are zeros, and right."""
    outputs = point.outputs()
    silent = type(outputs)(logps_N=outputs.logps_N, values_N=torch.zeros_like(outputs.logps_N))
    loss = objectives.find("ppo")(vf_coef=0.0, **fields)(point.batch(), silent)
    return loss.total.item()


CLIP = tokens([0.5, 1.0, 1.5], [1.0, -1.0, 2.0])
DUAL = tokens([0.5, 1.0, 10.0], [1.0, -1.0, -4.0])
PLAIN = {"beta": 0.0, "aggregation": "token"}


def test_the_clip():
    assert ppo_loss(CLIP, cliprange=0.2) == pytest.approx(-0.5 + 1 - 2.4, abs=1e-8)
    assert mean_loss("grpo", CLIP, epsilon=0.2, **PLAIN) == pytest.approx(-1.9 / 3, abs=1e-8)
    single = mean_loss("grpo", CLIP, torch.float32, epsilon=0.2, **PLAIN)
    assert single == pytest.approx(-0.633333, abs=1e-5)


def test_the_clip_with_a_higher_upper_end():
    found = mean_loss("grpo", CLIP, epsilon=0.2, epsilon_high=0.28, **PLAIN)
    assert found == pytest.approx(-0.686667, abs=6e-7)


def test_each_token_of_the_clip():
    for w, a, loss in [(0.5, 1, -0.5), (1, -1, 1), (1.5, 2, -2.4)]:
        assert mean_loss("grpo", tokens([w], [a]), **PLAIN) == pytest.approx(loss, abs=1e-10)


def test_the_other_triple():
    for w, loss in [(math.e, -1.2), (1 / math.e, -0.367879), (math.exp(0.1), -1.105171)]:
        assert ppo_loss(tokens([w], [1.0])) == pytest.approx(loss, abs=6e-7)


def test_dual_clip():
    assert ppo_loss(DUAL, dual_clip=3.0) == pytest.approx(12.5, abs=1e-8)
    assert mean_loss("grpo", DUAL, dual_clip=3.0, **PLAIN) == pytest.approx(4.166667, abs=6e-7)
    assert ppo_loss(DUAL) == pytest.approx(-0.5 + 1 + 40, abs=1e-8)


def test_reinforce():
    point = tokens([1, 1, 1], [1.0, -1.0, 2.0], [-0.5, -1.0, -1.5])
    assert mean_loss("reinforce", point) == pytest.approx(0.833333, abs=6e-7)


def test_cispo():
    assert mean_loss("cispo", CLIP, ratio_max=1.2, ratio_min=0.8) == pytest.approx(0.5938, abs=6e-7)
    assert mean_loss("cispo", CLIP, ratio_max=1.2) == pytest.approx(0.424486, abs=6e-7)
    logps = [-1.69315, -1.0, -0.69741]
    skyrl = tokens([0.5, 1, 10], [1.0, -1.0, -4.0], logps)
    total = 3 * mean_loss("cispo", skyrl, ratio_max=1.2, ratio_min=0.8)
    assert total == pytest.approx(-2.9930, abs=6e-5)


WIDE = {"epsilon": 0.2, "epsilon_high": 0.2}


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_gspo_of_one_completion(level):
    assert mean_loss("gspo", CLIP, level=level, **WIDE) == pytest.approx(-0.605707, abs=6e-7)


def test_gspo_of_two():
    """The second one's ratio is 2.4697. Clipped per token as there, and per completion as here:
    a mean advantage of 2/3 is clipped at 1.2."""
    logps = [LN(w) - 1 for w in (0.5, 1.0, 1.5)] * 2
    sampled = [-1.0] * 3 + [-2.0] * 3
    ratios = [math.exp(p - q) for p, q in zip(logps, sampled, strict=True)]
    two = tokens(ratios, [1.0, -1.0, 2.0] * 2, logps, cut=[3])
    assert mean_loss("gspo", two, level="token", **WIDE) == pytest.approx(-0.4912, abs=6e-5)
    by_hand = (-0.605707 - 1.2 * 2 / 3) / 2
    assert mean_loss("gspo", two, level="sequence", **WIDE) == pytest.approx(by_hand, abs=6e-7)


def column(values):
    return torch.tensor(values, dtype=torch.float64)


def test_kl_estimators():
    logps, reference = column([-1.0] * 3), column([0.0, -15.0, -30.0])
    near = {"abs": 5e-5}
    assert ops.kl_k1(logps, reference).tolist() == pytest.approx([-1, 14, 29], **near)
    assert ops.kl_k2(logps, reference).tolist() == pytest.approx([0.5, 98, 420.5], **near)
    assert ops.kl_k3(logps, reference).tolist() == pytest.approx([0.7183, 13, 28], **near)


def test_kl_estimators_of_a_constant_drift():
    logps, reference = column([0.2, 0.3]), column([0.1, 0.2])
    assert ops.kl_k1(logps, reference).mean().item() == pytest.approx(0.1, abs=1e-12)
    assert ops.kl_k2(logps, reference).mean().item() == pytest.approx(0.005, abs=1e-12)
    exact = math.exp(-0.1) - 0.9
    assert ops.kl_k3(logps, reference).mean().item() == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("estimator", ["k3", "weighted_k3"])
def test_the_kl_loss(estimator):
    drifted = tokens([1, 1, 1], [0.0] * 3, [0.0, -1.0, -2.0])
    drifted = drifted.with_columns(reference_logps_N=[[-1.0] * 3])
    fields = {"beta": 0.1, "kl_estimator": estimator, "aggregation": "token"}
    rows = [math.exp(-1), 0.0, math.e - 2]
    assert rows == pytest.approx([0.368, 0, 0.718], abs=5e-4)
    assert mean_loss("grpo", drifted, **fields) == pytest.approx(sum(rows) / 30, abs=1e-10)
    assert mean_loss("grpo", drifted, **fields) == pytest.approx(0.0362, abs=5e-5)


AGGREGATED = [  # verl's rows; its fourth is not divided by the number of completions, ours is
    ("token", 10 / 4),
    ("sequence_sum", (6 + 4) / 2),
    ("sequence", (2 + 4) / 2),
    ("constant", 3.333333 / 2),
]


@pytest.mark.parametrize(("aggregation", "golden"), AGGREGATED)
@pytest.mark.parametrize("name", ["reinforce", "cispo"])
def test_the_four_averages(name, aggregation, golden):
    point = tokens([1] * 4, [1.0] * 4, [-1.0, -2.0, -3.0, -4.0], cut=[3])
    fields = {"aggregation": aggregation, "max_completion_length": 3}
    assert mean_loss(name, point, **fields) == pytest.approx(golden, abs=6e-7)


@pytest.mark.parametrize(("aggregation", "golden"), AGGREGATED)
def test_the_four_averages_of_grpo(aggregation, golden):
    point = tokens([1] * 4, [-1.0, -2.0, -3.0, -4.0], cut=[3])
    fields = {"aggregation": aggregation, "max_completion_length": 3, "beta": 0.0}
    assert mean_loss("grpo", point, **fields) == pytest.approx(golden, abs=6e-7)


def test_dft_halves_the_cross_entropy_of_a_fair_coin():
    coin = Point([[-LN(2)] * 3])
    loss, gradient = judge(objectives.find("dft")(), coin)
    assert loss.total.item() / loss.weight == pytest.approx(LN(2) / 2, abs=1e-12)
    assert gradient == pytest.approx([-0.5] * 3, abs=1e-12)
