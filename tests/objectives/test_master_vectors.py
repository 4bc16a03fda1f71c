"""The master vector: three pairs, every method's value per pair (algorithm sheet 5.1).

Log-probs are of whole completions; each is cut unevenly into its tokens.
"""

import math

import pytest
import torch
from flat_batches import leaf, make_batch
from points import Point, judge

from truing import objectives
from truing.batch import Outputs

CHOSEN, REJECTED = [-0.5, -10.0, -1.0], [-0.1, -30.0, -21.0]
REF_CHOSEN, REF_REJECTED = [-0.5, -10.1, -0.1], [-0.1, -20.1, -0.1]
LENGTHS = [(2, 1), (5, 6), (4, 3)]
DIGITS = 6e-7

ROWS = [
    ("dpo", {}, [0.693147, 0.313262, 0.126928]),
    ("cdpo", {"label_smoothing": 0.2}, [0.693147, 0.513262, 0.526928]),
    ("robust", {"label_smoothing": 0.2}, [0.693147, -0.020072, -0.539739]),
    ("hinge", {}, [1, 0, 0]),
    ("ipo", {"tau": 0.1, "length_normalize": False}, [25, 25, 225]),
    ("ipo", {"tau": 0.1, "length_normalize": True}, [25, 11.0889, 3.033403]),
    ("exo_pair", {"label_smoothing": 1e-3}, [2.761231, 1.276310, 0.458972]),
    ("nca_pair", {}, [1.386294, 1.195220, 1.122047]),
    ("sppo", {}, [50, 48.02, 287.62]),
    ("apo_zero", {}, [1.0, 0.768412, 0.632557]),
    ("apo_down", {}, [1.0, 0.771441, 0.596718]),
    ("discopop", {"tau": 0.05}, [0.846574, 0.367879, 0.135335]),
    ("dpo_norm", {}, [0.693147, 0.613129, 0.411832]),
    ("r_dpo", {"alpha": 0.01}, [0.688160, 0.315961, 0.125741]),
    ("dpop", {"penalty": 50.0}, [0.693147, 0.313262, 2.578890]),
    ("f_dpo", {"divergence": "reverse_kl"}, [0.693147, 0.313262, 0.126928]),
    ("f_dpo", {"divergence": "jensen_shannon"}, [0.693147, 0.333831, 0.131056]),
    ("f_dpo", {"divergence": "alpha", "alpha": 0.5}, [0.693147, 6.6e-13, 0]),
    ("f_dpo", {"divergence": "forward_kl"}, [0.693147, 0, 0]),
    ("tr_dpo", {}, [0.693147, 0.313262, 0.126928]),
    ("ld_dpo", {"alpha": 1.0}, [0.693147, 0.313262, 0.126928]),
    ("rpo", {"nll_coef": 0.0}, [0.693147, 0.313262, 0.126928]),
    ("cpo", {"nll_coef": 0.0}, [0.713347, 0.126928, 0.126928]),
    ("simpo", {"beta": 2.0, "gamma_beta_ratio": 0.25}, [1.171101, 0.004078, 0.000002]),
    ("slic", {"delta": 1.0, "nll_coef": 0.0}, [1.4, 0, 0]),
]


def cut(total, length, tilt):
    """Later tokens weigh (1 + tilt) as much as the one before."""
    shares = [(1 + tilt) ** t for t in range(length)]
    return [total * share / sum(shares) for share in shares]


def pair(i, lengths=None):
    chosen, rejected = lengths or LENGTHS[i]
    return Point(
        [cut(CHOSEN[i], chosen, -0.3), cut(REJECTED[i], rejected, 0.2)],
        {
            "reference_logps_N": [
                cut(REF_CHOSEN[i], chosen, 0.7),
                cut(REF_REJECTED[i], rejected, -0.1),
            ],
            "chosen_G": [0],
            "rejected_G": [1],
        },
        [0, 0],
    )


def all_pairs():
    singles = [pair(i) for i in range(3)]
    columns = {
        "reference_logps_N": [r for p in singles for r in p.columns["reference_logps_N"]],
        "chosen_G": [0, 2, 4],
        "rejected_G": [1, 3, 5],
    }
    return Point([row for p in singles for row in p.policy], columns, [0, 0, 1, 1, 2, 2])


def made(name, fields):
    beta = {} if name in ("ipo", "slic") else {"beta": 0.1}
    return objectives.find(name)(**beta | fields)


@pytest.mark.parametrize(("name", "fields", "row"), ROWS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "relative"), [(torch.float64, 0), (torch.float32, 1e-5)], ids=["double", "single"]
)
def test_each_pair_and_their_sum(name, fields, row, dtype, relative):
    objective = made(name, fields)
    near = {"abs": DIGITS if dtype == torch.float64 else 1e-5, "rel": relative}
    for i, golden in enumerate(row):
        assert judge(objective, pair(i), dtype)[0].total.item() == pytest.approx(golden, **near)
    together, _ = judge(objective, all_pairs(), dtype)
    near["abs"] *= 3
    assert together.total.item() == pytest.approx(sum(row), **near)
    assert together.weight == 3


def test_the_tiny_row_of_the_alpha_divergence():
    objective = made("f_dpo", {"divergence": "alpha", "alpha": 0.5})
    assert judge(objective, pair(1))[0].total.item() == pytest.approx(6.6e-13, abs=5e-14)
    other = made("f_dpo", {"divergence": "alpha", "alpha": 0.3})
    found = [judge(other, pair(i))[0].total.item() for i in range(3)]
    assert found == pytest.approx([0.6931, 0.0021, 0], abs=5e-5)


def test_bco_pair_at_a_shift_of_0():
    shift = torch.tensor(0.0, dtype=torch.float64)
    for i, golden in enumerate([1.386294, 1.004121, 0.855775]):
        batch = pair(i).batch().with_columns(reward_shift=shift)
        loss = made("bco_pair", {})(batch, pair(i).outputs())
        assert loss.total.item() == pytest.approx(golden, abs=DIGITS)


@pytest.mark.parametrize(
    ("pairing", "row"),
    [("paired", [0.693147, 0.126928, 0.313262]), ("unpaired", [0.126928, 0.315961, 0.688160])],
)
def test_aot_couples_the_pairs(pairing, row):
    loss, _ = judge(made("aot", {"pairing": pairing}), all_pairs())
    assert loss.total.item() == pytest.approx(sum(row), abs=3 * DIGITS)


def test_simpo_on_completions_of_one_token():
    objective = made("simpo", {"beta": 2.0, "gamma_beta_ratio": 0.25})
    found = [judge(objective, pair(i, (1, 1)))[0].total.item() for i in range(3)]
    assert found == pytest.approx([1.541008, 0, 0], abs=DIGITS)


def test_orpos_odds_and_its_two_terms():
    rows = zip([-0.993477, 3.138653, 8.257779], [1.308497, 0.042428, 0.000259], strict=True)
    for i, (odds, term) in enumerate(rows):
        whole = judge(made("orpo", {"beta": 1.0}), pair(i))[0].total.item()
        found = whole + CHOSEN[i] / LENGTHS[i][0]
        assert found == pytest.approx(term, abs=DIGITS)
        assert -math.log(math.expm1(found)) == pytest.approx(odds, abs=2 * DIGITS)


@pytest.mark.parametrize(
    ("label", "rhos", "row"),
    [
        (1, [0, 0.1, -0.9], [0.505, 0.5025, 0.527472]),
        (0, [0, -9.9, -20.9], [0.495, 0.26698, 0.108129]),
    ],
    ids=["desirable", "undesirable"],
)
def test_kto_at_a_baseline_of_a_fifth(label, rhos, row):
    for rho, golden in zip(rhos, row, strict=True):
        columns = {
            "reference_logps_N": [[-1.0, -2.0]],
            "label_C": [label],
            "mismatched_C": [0],
        }
        point = Point([[-1.0 + 0.3 * rho, -2.0 + 0.7 * rho]], columns)
        baseline = torch.tensor(0.2, dtype=torch.float64)
        batch = point.batch().with_columns(kl_baseline=baseline)
        loss = made("kto", {})(batch, point.outputs())
        assert loss.total.item() == pytest.approx(golden, abs=2e-6)  # the sheet rounds 0.504999…


BT_CHOSEN, BT_REJECTED = [2.0, 0.5, -1.0], [1.0, 1.0, -1.0]


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        ({}, [0.313262, 0.974077, 0.693147]),
        ({"margin_coef": 1.0}, [0.693147, 1.194218, 0.693147]),
    ],
    ids=str,
)
def test_bradley_terry_with_and_without_a_margin(fields, row):
    for i, golden in enumerate(row):
        batch = make_batch(
            [1, 1], [0, 0], chosen_G=[0], rejected_G=[1], margin_G=[[1, 1 / 3, 0][i]]
        )
        scores_C = leaf([BT_CHOSEN[i], BT_REJECTED[i]])
        loss = objectives.find("bradley_terry")(**fields)(batch, Outputs(scores_C=scores_C))
        assert loss.total.item() == pytest.approx(golden, abs=DIGITS)


def test_the_centred_mean_of_bradley_terry():
    batch = make_batch([1] * 6, [0, 1, 2] * 2, chosen_G=[0, 1, 2], rejected_G=[3, 4, 5])
    scores_C = leaf(BT_CHOSEN + BT_REJECTED)
    objective = objectives.find("bradley_terry")(center_coefficient=0.01)
    loss = objective(batch, Outputs(scores_C=scores_C))
    assert loss.total.item() / loss.weight == pytest.approx(0.710995, abs=DIGITS)
