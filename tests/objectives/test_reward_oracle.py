"""Rewards from rankings and from labelled steps, in scalars (sheet 1.2, 1.15)."""

import math

import pytest
import torch
from flat_batches import leaf, make_batch
from points import TOLERANCE
from pydantic import ValidationError
from scalar import log_sigmoid, log_softmax, mean, slopes

from truing import objectives
from truing.batch import Outputs, combine

precisions = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32], ids=["double", "single"]
)

GROUPS = [0, 1, 0, 0, 1, 0, 1]
GIVEN = [2.0, 1.0, 0.5, 3.0, 0.25, -1.0, 4.0]
"""No ties: groups of four and three, mixed."""
TIED = [2.0, 1.0, 2.0, 0.5, 1.0, 0.5, 0.0]
"""2 2 0.5 0.5 and 1 1 0."""
BEST_TIED = [2.0, 1.0, 0.5, 2.0, 0.25, 2.0, 1.0]
SCORES = [0.3, -1.2, 0.9, 0.1, 1.7, -0.6, 0.4]


def all_pairs(scores, given):
    losses = [
        -log_sigmoid(scores[i] - scores[j])
        for i in range(len(scores))
        for j in range(len(scores))
        if given[i] > given[j]
    ]
    return mean(losses) if losses else 0.0


def plackett_luce(scores, given):
    """Of each item: its share among all that are not ranked above it."""
    total = 0.0
    for i in range(len(scores)):
        rest = [scores[j] for j in range(len(scores)) if given[j] <= given[i]]
        total -= scores[i] - math.log(sum(math.exp(s) for s in rest))
    return total


def best(scores, given):
    logp = log_softmax(scores)
    return -mean([lp for lp, g in zip(logp, given, strict=True) if g == max(given)])


FORMS = {"all_pairs": all_pairs, "plackett_luce": plackett_luce, "best": best}


def rank(form, scores, given, groups=GROUPS, dtype=torch.float64):
    batch = make_batch([1] * len(scores), groups, dtype, scores_C=given)
    scores_C = leaf(scores, dtype)
    loss = objectives.find("ranking")(form=form)(batch, Outputs(scores_C=scores_C))
    loss.total.backward()
    return loss, scores_C.grad.tolist()


@precisions
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("given", [GIVEN, TIED, BEST_TIED], ids=["strict", "ties", "ties on top"])
def test_ranking(form, given, dtype):
    def total(rows):
        found = 0.0
        for group in (0, 1):
            members = [i for i, g in enumerate(GROUPS) if g == group]
            found += FORMS[form]([rows[0][i] for i in members], [given[i] for i in members])
        return found

    loss, gradient = rank(form, SCORES, given, dtype=dtype)
    tolerance = TOLERANCE[dtype]
    assert loss.weight == 2
    assert loss.total.item() == pytest.approx(total([SCORES]), abs=tolerance)
    assert gradient == pytest.approx(slopes(total, [SCORES]), abs=tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_two_completions_are_bradley_terry(form):
    loss, _ = rank(form, [0.7, 1.9], [1.0, 0.0], [0, 0])
    assert loss.total.item() == pytest.approx(math.log(1 + math.exp(1.2)), abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_the_numbers_given_matter_only_through_their_order(form):
    monotone = [math.exp(g) - 3 for g in GIVEN]
    one, two = rank(form, SCORES, GIVEN), rank(form, SCORES, monotone)
    assert one[0].total.item() == two[0].total.item()


def test_a_group_without_a_better_one_teaches_nothing():
    loss, gradient = rank("all_pairs", [0.7, -2.0, 0.4], [1.0, 1.0, 1.0], [0, 0, 0])
    assert loss.total.item() == 0
    assert gradient == [0, 0, 0]


def test_a_constant_per_prompt_changes_no_form():
    shifted = [s + (5.0, -3.0)[g] for s, g in zip(SCORES, GROUPS, strict=True)]
    for form in FORMS:
        here, there = rank(form, SCORES, TIED)[0], rank(form, shifted, TIED)[0]
        assert there.total.item() == pytest.approx(here.total.item(), abs=1e-10)


def test_metrics_compare_every_pair_whose_order_is_given():
    metrics = combine([rank("best", SCORES, TIED)[0].metrics])
    better = [(0, 3), (0, 5), (2, 3), (2, 5), (1, 6), (4, 6)]
    margins = [SCORES[i] - SCORES[j] for i, j in better]
    assert metrics["margin"] == pytest.approx(mean(margins), abs=1e-6)
    assert metrics["accuracy"] == pytest.approx(5 / 6, abs=1e-6)
    assert metrics["mean_reward"] == pytest.approx(mean(SCORES), abs=1e-6)


def steps(scores, labels, dtype=torch.float64):
    batch = make_batch([3, 4], None, dtype)
    batch = batch.with_columns(
        step_end_S=torch.arange(1, 1 + len(scores)), step_label_S=torch.tensor(labels).bool()
    )
    scores_S = leaf(scores, dtype)
    loss = objectives.find("process_reward")()(batch, Outputs(scores_S=scores_S))
    loss.total.backward()
    return loss, scores_S.grad.tolist()


@precisions
def test_every_step_is_a_yes_or_no(dtype):
    scores, labels = [1.3, -0.4, 0.8, -2.5, 0.1], [1, 1, 0, 0, 0]

    def total(rows):
        signs = [1 if y else -1 for y in labels]
        return -sum(log_sigmoid(s * x) for s, x in zip(signs, rows[0], strict=True))

    loss, gradient = steps(scores, labels, dtype)
    tolerance = TOLERANCE[dtype]
    assert loss.weight == 5
    assert loss.total.item() == pytest.approx(total([scores]), abs=tolerance)
    assert gradient == pytest.approx(slopes(total, [scores]), abs=tolerance)
    assert combine([loss.metrics])["accuracy"] == pytest.approx(2 / 5, abs=1e-6)


def test_hopeless_steps_stay_finite():
    loss, gradient = steps([-1e4, 1e4], [1, 0], torch.float32)
    assert loss.total.item() == 2e4
    assert gradient == [-1, 1]


def test_declarations():
    ranking, process = objectives.find("ranking"), objectives.find("process_reward")
    assert ranking() == ranking(form="all_pairs")
    assert (ranking.trains, ranking.unit) == ("reward", "groups")
    assert (process.trains, process.unit) == ("reward", "steps")
    with pytest.raises(ValidationError):
        ranking(form="worst")
