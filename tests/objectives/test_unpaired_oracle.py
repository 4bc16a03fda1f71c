"""Objectives on single verdicts, in scalars (sheet 1.10, 1.12; O32)."""

import math

import pytest
import torch
from points import Point, agree, judge
from pydantic import ValidationError
from scalar import log_sigmoid, mean, sigmoid

from truing import objectives
from truing.batch import Outputs
from truing.objectives.base import WholeStep

POLICY = [[-0.5, -1.25], [-0.75, -2.0, -0.3], [-1.6], [-0.2, -0.9, -1.1, -0.4], [-0.6, -2.1]]
REFERENCE = [[-0.8, -0.6], [-1.4, -1.7, -0.9], [-1.1], [-0.7, -0.3, -1.9, -0.2], [-2.6, -1.9]]
RHO = [-0.35, 0.95, -0.5, 0.5, 1.8]
VERDICTS = Point(
    POLICY,
    {"reference_logps_N": REFERENCE, "label_C": [1, 0, 0, 1, 1], "mismatched_C": [0] * 5},
    [0, 1, 2, 3, 4],
)
MIXED = VERDICTS.with_columns(mismatched_C=[0, 1, 0, 0, 1])
"""The second and the last are other rows' completions: ρ 0.95 and 1.8."""


def kto(rho, desirable, beta, baseline, good=1.0, bad=1.0):
    if desirable:
        return good * (1 - sigmoid(beta * (rho - baseline)))
    return bad * (1 - sigmoid(beta * (baseline - rho)))


def bco(rho, desirable, beta, shift, good=1.0, bad=1.0):
    if desirable:
        return -good * log_sigmoid(beta * rho - shift)
    return -bad * log_sigmoid(shift - beta * rho)


def over_verdicts(point, of_one, *rest):
    mismatched = point.columns.get("mismatched_C", [0] * 5)
    judged = [i for i in range(len(point.policy)) if not mismatched[i]]
    labels = point.columns["label_C"]
    return lambda policy: sum(
        of_one(point.sentence(i, policy).rho, labels[i], *rest) for i in judged
    )


FIELDS = [(0.1, 1.0, 1.0), (0.8, 1.3, 0.6)]
every_setting = pytest.mark.parametrize(("beta", "good", "bad"), FIELDS)
precisions = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32], ids=["double", "single"]
)


def weights(beta, good, bad):
    return {"beta": beta, "desirable_weight": good, "undesirable_weight": bad}


@every_setting
@precisions
def test_kto_measures_against_the_mean_of_the_mismatched(beta, good, bad, dtype):
    baseline = (0.95 + 1.8) / 2
    loss = over_verdicts(MIXED, kto, beta, baseline, good, bad)
    agree(objectives.find("kto")(**weights(beta, good, bad)), MIXED, loss, 3, dtype)


def test_ktos_baseline_is_never_negative():
    low = VERDICTS.with_columns(mismatched_C=[1, 0, 1, 0, 0])  # ρ −0.35 and −0.5
    loss = over_verdicts(low, kto, 0.8, 0.0)
    agree(objectives.find("kto")(beta=0.8), low, loss, 3)


def test_the_clamp_is_on_the_mean_not_on_each_mismatched():
    both = VERDICTS.with_columns(mismatched_C=[0, 0, 1, 0, 1])  # ρ −0.5 and 1.8
    loss = over_verdicts(both, kto, 0.8, 0.65)
    agree(objectives.find("kto")(beta=0.8), both, loss, 3)


def micro_batches(objective, points, carried=None, number=0):
    """Total and weight over the step's micro-batches, prepared together."""
    batches, outputs = [p.batch() for p in points], [p.outputs() for p in points]
    sizes = {b.size_N: o for b, o in zip(batches, outputs, strict=True)}
    assert len(sizes) == len(batches)
    step = WholeStep(batches, lambda b: Outputs(sizes[b.size_N].logps_N.detach()))
    step.carried, step.number = carried if carried is not None else {}, number
    losses = [objective(b, o) for b, o in zip(objective.prepare(step), outputs, strict=True)]
    return sum(x.total.item() for x in losses), sum(x.weight for x in losses), step.carried


@pytest.mark.parametrize("cut", [[[0], [1, 2, 3, 4]], [[1, 3, 4], [2, 0]], [[2], [4, 0], [1, 3]]])
@pytest.mark.parametrize("name", ["kto", "bco", "apo_zero_unpaired"])
def test_the_loss_does_not_depend_on_the_cut(name, cut):
    point = MIXED if name == "kto" else VERDICTS
    objective = objectives.find(name)(beta=0.8)
    whole = micro_batches(objective, [point])
    parts = micro_batches(objective, [point.part(groups) for groups in cut])
    assert parts[:2] == pytest.approx(whole[:2], abs=1e-10)


@pytest.mark.parametrize("baseline", [0.0, 0.2, 1.7])
def test_kto_at_a_given_baseline(baseline):
    batch = VERDICTS.batch().with_columns(kl_baseline=torch.tensor(baseline, dtype=torch.float64))
    loss = objectives.find("kto")(beta=0.8)(batch, VERDICTS.outputs())
    expected = sum(
        kto(r, d, 0.8, baseline) for r, d in zip(RHO, VERDICTS.columns["label_C"], strict=True)
    )
    assert loss.total.item() == pytest.approx(expected, abs=1e-10)
    assert loss.weight == 5


@every_setting
@precisions
def test_apo_zero_unpaired(beta, good, bad, dtype):
    loss = over_verdicts(VERDICTS, kto, beta, 0.0, good, bad)
    objective = objectives.find("apo_zero_unpaired")(**weights(beta, good, bad))
    agree(objective, VERDICTS, loss, 5, dtype)


def test_kto_with_a_baseline_of_0_is_apo_zero_unpaired():
    batch = VERDICTS.batch().with_columns(kl_baseline=torch.tensor(0.0, dtype=torch.float64))
    one = objectives.find("kto")(**weights(0.4, 1.2, 0.7))(batch, VERDICTS.outputs())
    other, _ = judge(objectives.find("apo_zero_unpaired")(**weights(0.4, 1.2, 0.7)), VERDICTS)
    assert one.total.item() == pytest.approx(other.total.item(), abs=1e-12)


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_at_the_reference_each_costs_half_its_weight(name):
    still = MIXED.with_columns(reference_logps_N=POLICY)
    if name == "apo_zero_unpaired":
        still = VERDICTS.with_columns(reference_logps_N=POLICY)
    objective = objectives.find(name)(**weights(0.4, 1.2, 0.7))
    loss, gradient = judge(objective, still)
    others = 0 if name == "kto" else 1  # completions 1 (undesirable) and 4 (desirable)
    assert loss.total.item() == pytest.approx((2 + others) * 0.6 + (1 + others) * 0.35, abs=1e-12)
    expected = [-0.4 * 1.2 / 4] * 2 + [0.4 * 0.7 / 4 * others] * 3 + [0.4 * 0.7 / 4]
    expected += [-0.4 * 1.2 / 4] * 4 + [-0.4 * 1.2 / 4 * others] * 2
    assert gradient == pytest.approx(expected, abs=1e-12)


@every_setting
@precisions
def test_bco_shifts_by_the_mean_reward_of_the_step(beta, good, bad, dtype):
    shift = beta * mean(RHO)
    loss = over_verdicts(VERDICTS, bco, beta, shift, good, bad)
    agree(objectives.find("bco")(**weights(beta, good, bad)), VERDICTS, loss, 5, dtype)


def test_bcos_shift_remembers_every_reward_seen_so_far():
    objective = objectives.find("bco")(beta=0.8)
    first = VERDICTS.part([0, 1, 2])
    _, _, carried = micro_batches(objective, [first])
    total, _, _ = micro_batches(objective, [VERDICTS], carried, number=1)
    shift = 0.8 * mean(RHO[:3] + RHO)
    expected = over_verdicts(VERDICTS, bco, 0.8, shift)(POLICY)
    assert total == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["kto", "bco", "apo_zero_unpaired"])
def test_defaults_and_ranges(name):
    cls = objectives.find(name)
    assert cls() == cls(**weights(0.1, 1.0, 1.0))
    assert cls.unit == "completions"
    assert {"label_C", "reference_logps_N"} <= cls().required
    for nonsense in ({"beta": 0}, {"desirable_weight": -1}, {"undesirable_weight": math.nan}):
        with pytest.raises(ValidationError):
            cls(**nonsense)
