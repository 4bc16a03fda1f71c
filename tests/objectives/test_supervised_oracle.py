"""DFT, the averages of SFT, and mixtures, in scalars (sheet 1.1)."""

import math

import pytest
import torch
from points import PAIRS_A, PAIRS_B, Point, agree, judge
from pydantic import ValidationError
from scalar import log_sigmoid, mean

from truing import objectives
from truing.objectives.base import WholeStep

ROWS = [[-0.5, -1.25, -0.1], [-3.0], [-0.75, -2.0]]
POINT = Point(ROWS)
precisions = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32], ids=["double", "single"]
)

AVERAGES = {
    "token": (lambda rows: -sum(sum(r) for r in rows), 6),
    "sequence": (lambda rows: -sum(mean(r) for r in rows), 3),
    "sequence_sum": (lambda rows: -sum(sum(r) for r in rows), 3),
}


@pytest.mark.parametrize("aggregation", AVERAGES)
@precisions
def test_the_averages_of_sft(aggregation, dtype):
    loss, weight = AVERAGES[aggregation]
    agree(objectives.find("sft")(aggregation=aggregation), POINT, loss, weight, dtype)


@precisions
@pytest.mark.parametrize("rows", [ROWS, [[-0.01, -6.0], [-1.0]]], ids=["three", "two"])
def test_dft_weighs_each_token_by_its_own_probability(rows, dtype):
    def loss(now):
        pairs = zip([x for r in now for x in r], [x for r in rows for x in r], strict=True)
        return -sum(math.exp(then) * x for x, then in pairs)

    agree(objectives.find("dft")(), Point(rows), loss, sum(len(r) for r in rows), dtype)


def test_sft_counts_tokens_unless_told_otherwise():
    cls = objectives.find("sft")
    assert cls() == cls(aggregation="token")
    with pytest.raises(ValidationError):
        cls(aggregation="constant")


def test_a_long_demonstration_counts_by_its_length_in_two_of_the_three():
    short, long = Point([[-1.0], [-2.0]]), Point([[-1.0], [-2.0] * 9])
    for aggregation, (a, b) in {
        "token": (1.5, 1.9),
        "sequence": (1.5, 1.5),
        "sequence_sum": (1.5, 9.5),
    }.items():
        for point, golden in ((short, a), (long, b)):
            loss, _ = judge(objectives.find("sft")(aggregation=aggregation), point)
            assert loss.total.item() / loss.weight == pytest.approx(golden, abs=1e-12)


DPO_SFT = ({"method": "dpo", "weight": 1.0, "beta": 0.4}, {"method": "sft", "weight": 0.3})
SFT_DPO = ({"method": "sft"}, {"method": "dpo", "weight": 2.5, "beta": 0.4})
TWO_PAIRWISE = (
    {"method": "nca_pair", "weight": 0.7, "beta": 0.5},
    {"method": "sft", "weight": 0.2, "aggregation": "sequence"},
    {"method": "dpo", "beta": 0.4},
)


def part_mean(part, point, policy):
    """The mean of one part over its own units: pairs, or the tokens of the chosen."""
    sides = list(zip(point.columns["chosen_G"], point.columns["rejected_G"], strict=True))
    if part["method"] == "sft":
        rows = [policy[w] for w, _ in sides]
        if part.get("aggregation") == "sequence":
            return -mean([mean(row) for row in rows])
        return -mean([x for row in rows for x in row])
    beta, losses = part["beta"], []
    for w, r in sides:
        good, bad = (beta * point.sentence(i, policy).rho for i in (w, r))
        if part["method"] == "dpo":
            losses.append(-log_sigmoid(good - bad))
        else:
            losses.append(-log_sigmoid(good) - log_sigmoid(-good) / 2 - log_sigmoid(-bad) / 2)
    return mean(losses)


@pytest.mark.parametrize("point", [PAIRS_A, PAIRS_B], ids=["two pairs", "three pairs"])
@pytest.mark.parametrize("parts", [DPO_SFT, SFT_DPO, TWO_PAIRWISE], ids=["d+s", "s+d", "n+s+d"])
def test_a_mixture_is_the_weighted_sum_of_its_parts_means(point, parts):
    pairs = len(point.columns["chosen_G"])

    def loss(policy):
        return pairs * sum(p.get("weight", 1.0) * part_mean(p, point, policy) for p in parts)

    agree(objectives.find("mixture")(parts=parts), point, loss, pairs)


@pytest.mark.parametrize("cut", [[[2], [0, 1]], [[1], [0], [2]]], ids=str)
@pytest.mark.parametrize("parts", [DPO_SFT, SFT_DPO, TWO_PAIRWISE], ids=["d+s", "s+d", "n+s+d"])
def test_a_mixture_does_not_depend_on_the_cut(cut, parts):
    objective = objectives.find("mixture")(parts=parts)
    points = [PAIRS_B.part(groups) for groups in cut]
    batches, outputs = [p.batch() for p in points], [p.outputs() for p in points]
    by_batch = {id(b): o for b, o in zip(batches, outputs, strict=True)}
    prepared = objective.prepare(WholeStep(batches, lambda b: by_batch[id(b)]))
    losses = [objective(b, o) for b, o in zip(prepared, outputs, strict=True)]
    mean_loss = sum(x.total.item() for x in losses) / sum(x.weight for x in losses)
    expected = sum(p.get("weight", 1.0) * part_mean(p, PAIRS_B, PAIRS_B.policy) for p in parts)
    assert mean_loss == pytest.approx(expected, abs=1e-8)


def test_dpo_with_sft_by_sequence_is_rpo():
    parts = (
        {"method": "dpo", "beta": 0.4},
        {"method": "sft", "weight": 0.7, "aggregation": "sequence"},
    )
    mixed, slope = judge(objectives.find("mixture")(parts=parts), PAIRS_B)
    one, expected = judge(objectives.find("rpo")(beta=0.4, nll_coef=0.7), PAIRS_B)
    assert mixed.total.item() == pytest.approx(one.total.item(), abs=1e-10)
    assert slope == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    "parts",
    [
        ({"method": "dpo"},),
        ({"method": "dpo"}, {"method": "no_such"}),
        ({"method": "dpo", "gamma": 1.0}, {"method": "sft"}),
        ({"method": "dpo", "weight": -1.0}, {"method": "sft"}),
        ({"method": "dpo"}, {"method": "bradley_terry"}),
        ({"weight": 1.0}, {"method": "sft"}),
    ],
    ids=str,
)
def test_senseless_mixtures_are_refused(parts):
    with pytest.raises(ValidationError):
        objectives.find("mixture")(parts=parts)
