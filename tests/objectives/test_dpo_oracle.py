"""DPO against the master vector and its identities (algorithm sheet 1.7, 5.1, O19-O30)."""

import math

import pytest
import torch
from flat_batches import leaf, make_batch
from pydantic import ValidationError

from truing.batch import Outputs, combine
from truing.objectives.pairwise.dpo import DPO

CHOSEN, REJECTED = [-0.5, -10.0, -1.0], [-0.1, -30.0, -21.0]
REF_CHOSEN, REF_REJECTED = [-0.5, -10.1, -0.1], [-0.1, -20.1, -0.1]
LENGTHS = [2, 5, 4, 1, 6, 3]
ROWS = [0.693147, 0.313262, 0.126928]


def spread(totals, lengths, tilt):
    """Each total cut unevenly over its tokens: later tokens weigh (1 + tilt) as much."""
    parts = []
    for total, length in zip(totals, lengths, strict=True):
        shares = [(1 + tilt) ** t for t in range(length)]
        parts += [total * share / sum(shares) for share in shares]
    return parts


def master(dtype=torch.float64, swap=False, shift=(0, 0, 0), scale=1.0, **knobs):
    """The master vector: log-probs of whole completions, cut into tokens."""
    reference = [r + c for r, c in zip(REF_CHOSEN + REF_REJECTED, [*shift] * 2, strict=True)]
    policy = [
        r + scale * (p - r)
        for p, r in zip(CHOSEN + REJECTED, REF_CHOSEN + REF_REJECTED, strict=True)
    ]
    sides = ([3, 4, 5], [0, 1, 2]) if swap else ([0, 1, 2], [3, 4, 5])
    batch = make_batch(
        LENGTHS,
        [0, 1, 2, 0, 1, 2],
        dtype,
        chosen_G=sides[0],
        rejected_G=sides[1],
        reference_logps_N=spread(reference, LENGTHS, 0.7),
    )
    logps_N = leaf(spread(policy, LENGTHS, -0.3), dtype)
    return DPO(**knobs)(batch, Outputs(logps_N=logps_N)), logps_N


def one_pair(chosen, rejected, **knobs):
    """A pair of one-token completions with a reference of 0."""
    batch = make_batch([1, 1], [0, 0], chosen_G=[0], rejected_G=[1], reference_logps_N=[0, 0])
    logps_N = leaf([chosen, rejected])
    return DPO(**knobs)(batch, Outputs(logps_N=logps_N)), logps_N


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_master_vector(dtype):
    loss, _ = master(dtype, beta=0.1)
    assert loss.total.item() == pytest.approx(sum(ROWS), abs=2e-6)
    assert loss.weight == 3


@pytest.mark.parametrize(
    ("drift_w", "drift_l", "row"), [(0, 0, 0), (0.1, -9.9, 1), (-0.9, -20.9, 2)]
)
def test_each_row_of_the_master_vector(drift_w, drift_l, row):
    assert one_pair(drift_w, drift_l, beta=0.1)[0].total.item() == pytest.approx(
        ROWS[row], abs=1e-6
    )


def test_an_asymmetric_point_in_plain_math():
    batch = make_batch(
        [2, 3],
        [0, 0],
        chosen_G=[1],
        rejected_G=[0],
        reference_logps_N=[-1.5, -0.25, -2.0, -1.0, -0.5],
    )
    logps_N = leaf([-1.0, -0.5, -1.25, -1.5, -0.75])
    loss = DPO(beta=0.4)(batch, Outputs(logps_N=logps_N))
    # chosen: −3.5 against −3.5; rejected: −1.5 against −1.75
    wrong = 1 / (1 + math.exp(0.4 * (0.0 - 0.25)))
    assert loss.total.item() == pytest.approx(-math.log(1 - wrong), abs=1e-12)
    loss.total.backward()
    expected = [0.4 * wrong] * 2 + [-0.4 * wrong] * 3
    assert logps_N.grad.tolist() == pytest.approx(expected, abs=1e-12)


def test_the_default_is_the_papers_beta():
    assert DPO() == DPO(beta=0.1)


def test_at_the_reference_the_loss_is_ln_2_whatever_beta():
    for beta in (0.01, 0.1, 5.0):
        assert master(scale=0.0, beta=beta)[0].total.item() == pytest.approx(
            3 * math.log(2), abs=1e-12
        )
    assert DPO.step_zero["loss"][0] == pytest.approx(math.log(2), abs=1e-12)


def test_swapping_the_pair_adds_the_margin():
    loss, swapped = master(beta=0.1)[0], master(beta=0.1, swap=True)[0]
    assert (swapped.total - loss.total).item() == pytest.approx(0 + 1 + 2, abs=1e-12)


def test_beta_and_the_log_ratio_trade_places():
    assert master(beta=0.3)[0].total.item() == pytest.approx(
        master(beta=1.0, scale=0.3)[0].total.item(), abs=1e-12
    )


def test_a_constant_per_prompt_in_the_reference_changes_nothing():
    shifted = master(shift=(4.0, -2.5, 11.0))[0]
    assert shifted.total.item() == pytest.approx(master()[0].total.item(), abs=1e-12)


def test_a_decided_pair_stops_pulling_and_a_lost_one_pulls_with_beta():
    won, logps_N = one_pair(1e4, -1e4, beta=0.1)
    won.total.backward()
    assert won.total.item() == 0
    assert logps_N.grad.tolist() == [0, 0]
    lost, logps_N = one_pair(-1e4, 1e4, beta=0.1)
    lost.total.backward()
    assert lost.total.item() == pytest.approx(2000, abs=1e-9)
    assert logps_N.grad.tolist() == pytest.approx([-0.1, 0.1], abs=1e-12)


def test_metrics_of_the_master_vector():
    metrics = combine([master(beta=0.1)[0].metrics])
    assert metrics["loss"] == pytest.approx(sum(ROWS) / 3, abs=1e-6)
    assert metrics["rewards/chosen"] == pytest.approx(-0.08 / 3, abs=1e-6)
    assert metrics["rewards/rejected"] == pytest.approx(-3.08 / 3, abs=1e-6)
    assert metrics["rewards/margins"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["logps/chosen"] == pytest.approx(-11.5 / 3, abs=1e-5)
    assert metrics["logps/rejected"] == pytest.approx(-51.1 / 3, abs=1e-5)


def test_a_tie_is_not_a_success():
    for drift, share in ((0.0, 0.0), (1e-9, 1.0), (-1e-9, 0.0)):
        metrics = combine([one_pair(drift, 0.0)[0].metrics])
        assert metrics["rewards/accuracies"] == share


def test_beta_must_be_positive():
    with pytest.raises(ValidationError):
        DPO(beta=0)


def test_it_trains_a_policy_on_pairs_against_a_reference():
    assert (DPO.trains, DPO.unit) == ("policy", "pairs")
    assert DPO.needs == {"chosen_G", "rejected_G", "reference_logps_N"}
