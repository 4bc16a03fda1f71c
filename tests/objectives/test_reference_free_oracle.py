"""Pairwise objectives without a reference, in scalars (sheet 1.7, 1.9, 1.11; O31, O33)."""

import math

import pytest
import torch
from points import PAIRS_A, PAIRS_B, Point, agree, judge, label, over_pairs
from pydantic import ValidationError
from scalar import log_sigmoid

from truing import objectives

POINTS = pytest.mark.parametrize("point", [PAIRS_A, PAIRS_B], ids=["two pairs", "three pairs"])


def cpo(w, r, beta=0.1, nll_coef=1.0, nll_average="sequence"):
    nll = -w.mean_logp if nll_average == "sequence" else -w.logp
    return -log_sigmoid(beta * (w.logp - r.logp)) + nll_coef * nll


def simpo(w, r, beta=2.0, gamma_beta_ratio=0.5, sft_weight=0.0):
    margin = beta * (w.mean_logp - r.mean_logp) - beta * gamma_beta_ratio
    return -log_sigmoid(margin) + sft_weight * -w.mean_logp


def orpo(w, r, beta=0.1):
    def log_odds(y):  # of the geometric mean of its tokens' probabilities
        p = math.exp(y.mean_logp)
        return math.log(p) - math.log(1 - p)

    return -w.mean_logp - beta * log_sigmoid(log_odds(w) - log_odds(r))


def slic(w, r, delta=1.0, nll_coef=0.1):
    return max(0.0, delta - w.logp + r.logp) + nll_coef * -w.logp


CASES = [
    ("cpo", cpo, {}),
    ("cpo", cpo, {"beta": 0.6, "nll_coef": 0.3}),
    ("cpo", cpo, {"beta": 0.6, "nll_coef": 0.3, "nll_average": "sum"}),
    ("cpo", cpo, {"nll_coef": 0.0}),
    ("simpo", simpo, {}),
    ("simpo", simpo, {"beta": 0.8, "gamma_beta_ratio": 1.4}),
    ("simpo", simpo, {"beta": 3.0, "gamma_beta_ratio": 0.1, "sft_weight": 0.7}),
    ("orpo", orpo, {}),
    ("orpo", orpo, {"beta": 0.9}),
    ("slic", slic, {}),
    ("slic", slic, {"delta": 4.0, "nll_coef": 0.6}),
]


@pytest.mark.parametrize(("name", "scalar", "fields"), CASES, ids=label)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@POINTS
def test_value_and_gradient(name, scalar, fields, point, dtype):
    loss = over_pairs(point, lambda w, r: scalar(w, r, **fields))
    agree(objectives.find(name)(**fields), point, loss, len(point.columns["chosen_G"]), dtype)


@pytest.mark.parametrize("name", ["cpo", "simpo", "orpo", "slic"])
@POINTS
def test_a_poisoned_reference_goes_unnoticed(name, point):
    objective = objectives.find(name)()
    assert "reference_logps_N" not in objective.required
    nan = [[math.nan] * len(row) for row in point.policy]
    clean, gradient = judge(objective, point)
    poisoned, poisoned_gradient = judge(objective, point.with_columns(reference_logps_N=nan))
    assert poisoned.total.item() == clean.total.item()
    assert poisoned_gradient == gradient
    assert [m.total.item() for m in poisoned.metrics.values() if not m.total.isfinite()] == []


@pytest.mark.parametrize(
    ("average", "aggregation"), [("sequence", "sequence"), ("sum", "sequence_sum")]
)
def test_cpo_as_beta_vanishes_is_sft_on_the_chosen_less_ln_2(average, aggregation):
    faint, _ = judge(objectives.find("cpo")(beta=1e-13, nll_coef=1, nll_average=average), PAIRS_B)
    chosen = Point([PAIRS_B.policy[i] for i in PAIRS_B.columns["chosen_G"]])
    plain, _ = judge(objectives.find("sft")(aggregation=aggregation), chosen)
    expected = plain.total.item() / plain.weight
    assert faint.total.item() / faint.weight - math.log(2) == pytest.approx(expected, abs=1e-10)


def test_the_odds_term_pulls_by_the_mean_and_by_one_over_one_minus_p():
    point = Point([[-0.4, -0.8], [-2.0, -0.1, -0.6]], {"chosen_G": [0], "rejected_G": [1]}, [0, 0])
    _, gradient = judge(objectives.find("orpo")(beta=1.0), point)
    odds = [math.log(p / (1 - p)) for p in (math.exp(-0.6), math.exp(-0.9))]
    wrong = 1 / (1 + math.exp(odds[0] - odds[1]))
    chosen = (-1 - wrong / (1 - math.exp(-0.6))) / 2
    rejected = wrong / (1 - math.exp(-0.9)) / 3
    assert gradient == pytest.approx([chosen] * 2 + [rejected] * 3, abs=1e-10)


def test_certain_completions_have_finite_odds():
    certain = Point([[0.0, 0.0], [-1e-9]], {"chosen_G": [0], "rejected_G": [1]}, [0, 0])
    for dtype in (torch.float32, torch.float64):
        loss, gradient = judge(objectives.find("orpo")(), certain, dtype)
        assert loss.total.isfinite()
        assert all(math.isfinite(g) for g in gradient)


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("cpo", {"beta": 0.1, "nll_coef": 1.0, "nll_average": "sequence"}),
        ("simpo", {"beta": 2.0, "gamma_beta_ratio": 0.5, "sft_weight": 0.0}),
        ("orpo", {"beta": 0.1}),
        ("slic", {"delta": 1.0, "nll_coef": 0.1}),
    ],
)
def test_defaults(name, defaults):
    cls = objectives.find(name)
    assert cls() == cls(**defaults)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("cpo", {"nll_average": "token"}),
        ("cpo", {"nll_coef": -0.1}),
        ("simpo", {"beta": 0}),
        ("simpo", {"sft_weight": -0.1}),
        ("orpo", {"beta": -1}),
        ("slic", {"nll_coef": -1}),
    ],
    ids=str,
)
def test_senseless_fields_are_refused(name, fields):
    with pytest.raises(ValidationError):
        objectives.find(name)(**fields)
