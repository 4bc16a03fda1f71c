"""Objectives that judge each side of a pair by itself, in scalars (sheet 1.7: NCA to SPPO)."""

import pytest
import torch
from points import PAIRS_A, PAIRS_B, agree, judge, label, over_pairs
from pydantic import ValidationError
from scalar import log_sigmoid, mean, sigmoid

from truing import objectives
from truing.batch import Outputs
from truing.objectives.base import WholeStep

POINTS = pytest.mark.parametrize("point", [PAIRS_A, PAIRS_B], ids=["two pairs", "three pairs"])


def nca_pair(w, r, beta):
    good, bad = beta * w.rho, beta * r.rho
    return -log_sigmoid(good) - log_sigmoid(-good) / 2 - log_sigmoid(-bad) / 2


def bco_pair(w, r, beta, shift):
    return -log_sigmoid(beta * w.rho - shift) - log_sigmoid(shift - beta * r.rho)


def apo_zero(w, r, beta):
    return 1 - sigmoid(beta * w.rho) + sigmoid(beta * r.rho)


def apo_down(w, r, beta):
    return sigmoid(beta * w.rho) + 1 - sigmoid(beta * (w.rho - r.rho))


def sppo(w, r, beta, probability=1.0):
    goal = (probability - 0.5) / beta
    return (w.rho - goal) ** 2 + (r.rho + goal) ** 2


CASES = [
    ("nca_pair", nca_pair, {"beta": 0.01}),
    ("nca_pair", nca_pair, {"beta": 0.9}),
    ("apo_zero", apo_zero, {"beta": 0.1}),
    ("apo_zero", apo_zero, {"beta": 0.9}),
    ("apo_down", apo_down, {"beta": 0.1}),
    ("apo_down", apo_down, {"beta": 0.9}),
    ("sppo", sppo, {"beta": 0.001}),
    ("sppo", sppo, {"beta": 0.4}),
]


@pytest.mark.parametrize(("name", "scalar", "fields"), CASES, ids=label)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@POINTS
def test_value_and_gradient(name, scalar, fields, point, dtype):
    if name == "sppo" and fields["beta"] == 0.001 and dtype == torch.float32:
        dtype = torch.float64  # 500² leaves single precision no digit to compare
    loss = over_pairs(point, lambda w, r: scalar(w, r, **fields))
    agree(objectives.find(name)(**fields), point, loss, len(point.columns["chosen_G"]), dtype)


@POINTS
def test_soft_sppo_aims_at_the_probability(point):
    odds = [0.8, 0.3, 0.55][: len(point.columns["chosen_G"])]
    soft = point.with_columns(probability_G=odds)
    sides = list(zip(point.columns["chosen_G"], point.columns["rejected_G"], odds, strict=True))

    def loss(policy):
        return sum(
            sppo(point.sentence(w, policy), point.sentence(r, policy), 0.2, p) for w, r, p in sides
        )

    objective = objectives.find("sppo")(beta=0.2, soft_labels=True)
    assert "probability_G" in objective.required
    assert "probability_G" not in objectives.find("sppo")().required
    agree(objective, soft, loss, len(odds))


@POINTS
@pytest.mark.parametrize("shift", [0.0, 0.37, -1.2])
def test_bco_pair_at_a_given_shift(point, shift):
    objective = objectives.find("bco_pair")(beta=0.6)
    outputs = point.outputs()
    batch = point.batch().with_columns(reward_shift=torch.tensor(shift, dtype=torch.float64))
    loss = objective(batch, outputs)
    expected = over_pairs(point, lambda w, r: bco_pair(w, r, 0.6, shift))(point.policy)
    assert loss.total.item() == pytest.approx(expected, abs=1e-8)


def test_bco_pairs_shift_is_the_mean_of_both_sides_and_takes_no_gradient():
    beta = 0.6
    shift = mean([beta * PAIRS_B.sentence(i).rho for i in range(6)])
    loss = over_pairs(PAIRS_B, lambda w, r: bco_pair(w, r, beta, shift))
    agree(objectives.find("bco_pair")(beta=beta), PAIRS_B, loss, weight=3)


def test_bco_pairs_shift_remembers_every_reward_seen_so_far():
    beta, carried, seen = 0.6, {}, []
    objective = objectives.find("bco_pair")(beta=beta)
    for number, point in enumerate([PAIRS_A, PAIRS_B, PAIRS_A]):
        parts = [point] if number != 1 else [PAIRS_B.part([2]), PAIRS_B.part([0, 1])]
        step = WholeStep([p.batch() for p in parts], None, carried, number)
        outputs = [p.outputs() for p in parts]
        by_batch = {id(b): o for b, o in zip(step.batches, outputs, strict=True)}
        step.compute = lambda batch, by_batch=by_batch: by_batch[id(batch)]
        batches = objective.prepare(step)
        carried = step.carried
        seen += [beta * point.sentence(i).rho for i in range(len(point.policy))]
        assert all(float(b["reward_shift"]) == pytest.approx(mean(seen), abs=1e-6) for b in batches)
        total = sum(
            float(objective(b, o).total.detach()) for b, o in zip(batches, outputs, strict=True)
        )
        shift = mean(seen)
        expected = over_pairs(point, lambda w, r, d=shift: bco_pair(w, r, beta, d))(point.policy)
        assert total == pytest.approx(expected, abs=1e-6)


def test_apo_down_moves_only_the_rejected_at_first():
    still = PAIRS_A.with_columns(reference_logps_N=PAIRS_A.policy)
    _, gradient = judge(objectives.find("apo_down")(beta=0.4), still)
    assert gradient == pytest.approx([0.1] * 2 + [0.0] * 3 + [0.0] + [0.1] * 4, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "beta"),
    [("nca_pair", 0.01), ("bco_pair", 0.1), ("apo_zero", 0.1), ("apo_down", 0.1), ("sppo", 0.001)],
)
def test_defaults(name, beta):
    cls = objectives.find(name)
    assert cls() == cls(beta=beta)
    for nonsense in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            cls(beta=nonsense)


def test_the_shift_is_asked_of_the_learning_network_without_its_gradient():
    outputs = PAIRS_A.outputs()
    asked = []

    def compute(batch):
        asked.append(batch)
        return Outputs(logps_N=outputs.logps_N.detach())

    (batch,) = objectives.find("bco_pair")().prepare(WholeStep([PAIRS_A.batch()], compute))
    assert len(asked) == 1
    assert "reward_shift" in batch
    assert "reward_shift" in objectives.find("bco_pair").prepared
