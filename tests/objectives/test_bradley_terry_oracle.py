"""The Bradley-Terry loss against the master vector (algorithm sheet 1.2, 5.1, O34, O36)."""

import math

import pytest
import torch
from flat_batches import leaf, make_batch
from pydantic import ValidationError

from truing.batch import Outputs, combine
from truing.objectives.reward.bradley_terry import BradleyTerry

CHOSEN, REJECTED = [2.0, 0.5, -1.0], [1.0, 1.0, -1.0]
ROWS = [0.313262, 0.974077, 0.693147]


def judge(chosen, rejected, dtype=torch.float64, **knobs):
    """Pairs laid out as all the chosen, then all the rejected; returns the loss and the scores."""
    pairs = len(chosen)
    batch = make_batch(
        [1] * (2 * pairs),
        [*range(pairs)] * 2,
        dtype,
        chosen_G=range(pairs),
        rejected_G=range(pairs, 2 * pairs),
    )
    scores_C = leaf([*chosen, *rejected], dtype)
    return BradleyTerry(**knobs)(batch, Outputs(scores_C=scores_C)), scores_C


@pytest.mark.parametrize("pair", [0, 1, 2])
def test_each_row_of_the_master_vector(pair):
    loss, _ = judge([CHOSEN[pair]], [REJECTED[pair]])
    assert loss.total.item() == pytest.approx(ROWS[pair], abs=1e-6)
    assert loss.weight == 1


def test_the_master_vector_is_a_sum_over_pairs():
    loss, _ = judge(CHOSEN, REJECTED)
    assert loss.total.item() == pytest.approx(sum(ROWS), abs=2e-6)
    assert loss.weight == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_centring_term_adds_its_share(dtype):
    loss, _ = judge(CHOSEN, REJECTED, dtype, center_coefficient=0.01)
    assert loss.total.item() / loss.weight == pytest.approx(0.710995, abs=1e-6)


def test_an_asymmetric_point_in_plain_math():
    loss, _ = judge([1.7], [-0.4], center_coefficient=0.3)
    log_odds = -math.log(1 / (1 + math.exp(-2.1)))
    assert loss.total.item() == pytest.approx(log_odds + 0.3 * 1.3 * 1.3, abs=1e-12)


def test_the_gradient_is_the_probability_of_the_wrong_verdict():
    loss, scores_C = judge([1.7, -3.0], [-0.4, 0.5])
    loss.total.backward()
    wrong = [1 / (1 + math.exp(2.1)), 1 / (1 + math.exp(-3.5))]
    assert scores_C.grad.tolist() == pytest.approx([-wrong[0], -wrong[1], *wrong], abs=1e-12)


def test_the_gradient_of_the_centring_term_pulls_both_to_zero():
    plain, plain_C = judge([1.7], [0.4])
    centred, centred_C = judge([1.7], [0.4], center_coefficient=0.25)
    (centred.total - plain.total).backward()
    pull = (centred_C.grad + plain_C.grad).tolist()
    assert pull == pytest.approx([2 * 0.25 * 2.1] * 2, abs=1e-12)


def test_pairs_are_found_by_their_indices_not_by_their_place():
    batch = make_batch([1, 2, 3, 1], [1, 0, 1, 0], chosen_G=[3, 0], rejected_G=[1, 2])
    loss = BradleyTerry()(batch, Outputs(scores_C=leaf([0.5, 1.0, 1.0, 2.0])))
    assert loss.total.item() == pytest.approx(ROWS[0] + ROWS[1], abs=2e-6)
    assert combine([loss.metrics])["margin"] == pytest.approx(0.25, abs=1e-6)


def test_a_constant_per_prompt_changes_nothing_unless_scores_are_centred():
    shifted = [
        [r + c for r, c in zip(side, [5, -7, 0.5], strict=True)] for side in (CHOSEN, REJECTED)
    ]
    free, free_shifted = judge(CHOSEN, REJECTED)[0], judge(*shifted)[0]
    assert free_shifted.total.item() == pytest.approx(free.total.item(), abs=1e-12)
    tied, tied_shifted = (
        judge(*scores, center_coefficient=0.01)[0] for scores in ((CHOSEN, REJECTED), shifted)
    )
    assert abs(tied_shifted.total.item() - tied.total.item()) > 0.5


def test_flipping_the_labels_is_negating_the_scores():
    flipped, _ = judge(REJECTED, CHOSEN)
    negated, _ = judge([-r for r in CHOSEN], [-r for r in REJECTED])
    assert flipped.total.item() == pytest.approx(negated.total.item(), abs=1e-12)
    assert flipped.total.item() == pytest.approx(sum(ROWS) + 1.0 - 0.5, abs=2e-6)


def test_far_apart_scores_neither_overflow_nor_lose_the_slope():
    wrong, _ = judge([-1e4], [1e4], torch.float32)
    assert wrong.total.item() == 2e4
    right, _ = judge([1e4], [-1e4], torch.float32)
    assert right.total.item() == 0


def test_metrics_of_the_master_vector():
    metrics = combine([judge(CHOSEN, REJECTED)[0].metrics])
    assert metrics["accuracy"] == pytest.approx(1 / 3, abs=1e-6)  # a tie is not a success
    assert metrics["margin"] == pytest.approx(0.5 / 3, abs=1e-6)
    assert (metrics["min_reward"], metrics["max_reward"]) == (-1, 2)
    assert metrics["mean_reward"] == pytest.approx(2.5 / 6, abs=1e-6)


def test_accuracy_is_the_share_of_right_verdicts():
    metrics = combine([judge([2.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, -0.5])[0].metrics])
    assert metrics["accuracy"] == pytest.approx(3 / 4, abs=1e-6)


def test_it_trains_a_reward_on_pairs_without_a_reference():
    assert (BradleyTerry.trains, BradleyTerry.unit) == ("reward", "pairs")
    assert BradleyTerry.needs == {"chosen_G", "rejected_G"}


MARGINS, BELIEFS = [1.0, 1 / 3, -0.5], [0.8, 0.35, 0.5]


def scalar(chosen, rejected, margin=0.0, probability=1.0, smoothing=0.0, centring=0.0):
    d = chosen - rejected - margin
    p = (1 - smoothing) * probability + smoothing * (1 - probability)
    right, wrong = 1 / (1 + math.exp(-d)), 1 / (1 + math.exp(d))
    loss = -p * math.log(right) - (1 - p) * math.log(wrong)
    loss += centring * (chosen + rejected) ** 2
    pull = wrong - (1 - p)  # −∂/∂d
    return (
        loss,
        -pull + 2 * centring * (chosen + rejected),
        pull + 2 * centring * (chosen + rejected),
    )


@pytest.mark.parametrize(
    "knobs",
    [
        {"margin_coef": 1.0},
        {"margin_coef": 0.4},
        {"label_smoothing": 0.15},
        {"soft_labels": True},
        {"soft_labels": True, "label_smoothing": 0.15},
        {
            "margin_coef": 0.7,
            "soft_labels": True,
            "label_smoothing": 0.3,
            "center_coefficient": 0.2,
        },
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_margins_and_doubtful_labels(knobs, dtype):
    batch = make_batch(
        [1] * 6,
        [0, 1, 2] * 2,
        dtype,
        chosen_G=[0, 1, 2],
        rejected_G=[3, 4, 5],
        margin_G=MARGINS,
        probability_G=BELIEFS,
    )
    scores_C = leaf([*CHOSEN, *REJECTED], dtype)
    objective = BradleyTerry(**knobs)
    loss = objective(batch, Outputs(scores_C=scores_C))
    loss.total.backward()
    rows = [
        scalar(
            CHOSEN[i],
            REJECTED[i],
            knobs.get("margin_coef", 0.0) * MARGINS[i],
            BELIEFS[i] if knobs.get("soft_labels") else 1.0,
            knobs.get("label_smoothing", 0.0),
            knobs.get("center_coefficient", 0.0),
        )
        for i in range(3)
    ]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    assert loss.total.item() == pytest.approx(sum(row[0] for row in rows), abs=tolerance)
    slopes = [row[1] for row in rows] + [row[2] for row in rows]
    assert scores_C.grad.tolist() == pytest.approx(slopes, abs=tolerance)
    wanted = {"margin_G": "margin_coef" in knobs, "probability_G": "soft_labels" in knobs}
    assert {name: name in objective.required for name in wanted} == wanted


def test_a_smoothed_label_settles_at_its_log_odds():
    best = math.log(0.85 / 0.15)
    loss, scores_C = judge([best], [0.0], label_smoothing=0.15)
    loss.total.backward()
    assert scores_C.grad.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)


def test_an_even_bet_pulls_both_together():
    loss, scores_C = judge([0.3], [0.3], label_smoothing=0.499)
    loss.total.backward()
    assert scores_C.grad.tolist() == pytest.approx([-0.001, 0.001], abs=1e-12)


@pytest.mark.parametrize(
    "knob", [{"margin_coef": -1}, {"label_smoothing": 1.1}, {"center_coefficient": -1}], ids=str
)
def test_senseless_fields_are_refused(knob):
    with pytest.raises(ValidationError):
        BradleyTerry(**knob)


def test_everything_new_is_off_by_default():
    assert BradleyTerry() == BradleyTerry(
        center_coefficient=0.0, margin_coef=0.0, label_smoothing=0.0, soft_labels=False
    )
