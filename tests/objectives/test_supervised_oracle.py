"""DFT, the averages of SFT, and mixtures, in scalars (sheet 1.1)."""

import math

import pytest
import torch
from points import Point, agree, judge
from pydantic import ValidationError
from scalar import mean

from truing import objectives

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
