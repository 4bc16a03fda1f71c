"""Pairwise objectives that must see the whole step first: AOT and β-DPO (sheet 1.7)."""

import math
import statistics

import pytest
import torch
from points import PAIRS_A, PAIRS_B, Point, agree, judge
from pydantic import ValidationError
from scalar import log_sigmoid, mean

from truing import objectives
from truing.objectives.base import WholeStep

POINTS = pytest.mark.parametrize("point", [PAIRS_A, PAIRS_B], ids=["two pairs", "three pairs"])


def sides_of(point, policy=None):
    index = zip(point.columns["chosen_G"], point.columns["rejected_G"], strict=True)
    return [(point.sentence(w, policy), point.sentence(r, policy)) for w, r in index]


def aot(point, beta, pairing):
    def loss(policy):
        sides = sides_of(point, policy)
        if pairing == "paired":
            better = sorted(w.logp - r.logp for w, r in sides)
            worse = sorted(sum(w.reference) - sum(r.reference) for w, r in sides)
        else:
            better = sorted(w.rho for w, _ in sides)
            worse = sorted(r.rho for _, r in sides)
        return sum(-log_sigmoid(beta * (b - a)) for b, a in zip(better, worse, strict=True))

    return loss


@POINTS
@pytest.mark.parametrize("pairing", ["paired", "unpaired"])
@pytest.mark.parametrize("beta", [0.01, 0.8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
def test_aot_compares_what_stands_at_the_same_rank(point, pairing, beta, dtype):
    objective = objectives.find("aot")(beta=beta, pairing=pairing)
    agree(objective, point, aot(point, beta, pairing), len(point.columns["chosen_G"]), dtype)


def in_parts(objective, points, carried=None, number=0):
    """Prepared micro-batches of one step, the outputs of each, and what is carried on."""
    batches, outputs = [p.batch() for p in points], [p.outputs() for p in points]
    by_batch = {id(b): o for b, o in zip(batches, outputs, strict=True)}
    step = WholeStep(batches, lambda b: by_batch[id(b)], carried or {}, number)
    return objective.prepare(step), outputs, step.carried


@pytest.mark.parametrize("pairing", ["paired", "unpaired"])
@pytest.mark.parametrize("cut", [[[2], [0, 1]], [[1], [0], [2]]], ids=str)
def test_aot_sorts_over_the_whole_step(pairing, cut):
    objective = objectives.find("aot")(beta=0.8, pairing=pairing)
    batches, outputs, _ = in_parts(objective, [PAIRS_B.part(groups) for groups in cut])
    losses = [objective(b, o) for b, o in zip(batches, outputs, strict=True)]
    for loss in losses:
        loss.total.backward()
    whole, gradient = judge(objective, PAIRS_B)
    assert sum(x.total.item() for x in losses) == pytest.approx(whole.total.item(), abs=1e-10)
    pieces = [g for o in outputs for g in o.logps_N.grad.tolist()]
    assert sorted(pieces) == pytest.approx(sorted(gradient), abs=1e-10)


def test_aots_defaults():
    cls = objectives.find("aot")
    assert cls() == cls(beta=0.01, pairing="paired")
    with pytest.raises(ValidationError):
        cls(pairing="sorted")


def margins(point):
    return [w.rho - r.rho for w, r in sides_of(point)]


@POINTS
@pytest.mark.parametrize("step_beta", [0.1, 0.43])
def test_beta_dpo_is_dpo_on_the_kept_pairs_at_the_steps_beta(point, step_beta):
    kept = [True, False, True][: len(margins(point))]
    batch = point.batch().with_columns(
        kept_G=torch.tensor(kept), step_beta=torch.tensor(step_beta, dtype=torch.float64)
    )
    outputs, objective = point.outputs(), objectives.find("beta_dpo")()
    loss = objective(batch, outputs)
    expected = sum(
        -log_sigmoid(step_beta * m) for m, k in zip(margins(point), kept, strict=True) if k
    )
    assert loss.total.item() == pytest.approx(expected, abs=1e-10)
    assert loss.weight == objective.weigh(batch) == sum(kept)
    loss.total.backward()
    dropped = [point.columns[side][1] for side in ("chosen_G", "rejected_G")]
    ends = [sum(len(row) for row in point.policy[:i]) for i in range(len(point.policy) + 1)]
    for i in dropped:
        assert not outputs.logps_N.grad[ends[i] : ends[i + 1]].any()
    live = point.columns["chosen_G"][0]
    slope = -step_beta / (1 + math.exp(step_beta * margins(point)[0]))
    assert outputs.logps_N.grad[ends[live]].item() == pytest.approx(slope, abs=1e-10)


def many_pairs(count=40):
    policy, reference = [], []
    for i in range(count):
        policy += [[-1.0 - math.sin(7.0 * i)], [-2.0 + math.cos(3.0 * i) / 2]]
        reference += [[-1.2], [-1.9]]
    columns = {
        "reference_logps_N": reference,
        "chosen_G": list(range(0, 2 * count, 2)),
        "rejected_G": list(range(1, 2 * count, 2)),
    }
    return Point(policy, columns, [i // 2 for i in range(2 * count)])


def test_beta_dpo_keeps_its_share_and_draws_anew_each_step():
    objective, point = objectives.find("beta_dpo")(keep_ratio=0.8), many_pairs()
    draws = [in_parts(objective, [point], number=number)[0][0]["kept_G"] for number in (0, 0, 1)]
    assert [int(kept.sum()) for kept in draws] == [32, 32, 32]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_beta_dpo_draws_by_the_normal_density_of_the_margin():
    found = [-1.5, 0.2, 0.6, 2.0]
    columns = {"reference_logps_N": [[-9.0]] * 8, "chosen_G": range(4), "rejected_G": range(4, 8)}
    point = Point([[m - 9.0] for m in found] + [[-9.0]] * 4, columns, [0, 1, 2, 3] * 2)
    batch, outputs, draws = point.batch(), point.outputs(), 1500
    objective, counts = objectives.find("beta_dpo")(keep_ratio=0.25), [0] * 4
    for number in range(draws):
        (drawn,) = objective.prepare(WholeStep([batch], lambda _: outputs, {}, number))
        counts = [c + int(k) for c, k in zip(counts, drawn["kept_G"].tolist(), strict=True)]
    centre, width = mean(found), statistics.stdev(found)
    density = [math.exp(-(((m - centre) / width) ** 2) / 2) for m in found]
    for count, share in zip(counts, [d / sum(density) for d in density], strict=True):
        error = math.sqrt(share * (1 - share) / draws)
        assert count / draws == pytest.approx(share, abs=4 * error)


def test_beta_dpos_beta_follows_the_margins_against_their_running_mean():
    fields = {"beta": 0.1, "sensitivity": 0.6, "keep_ratio": 1.0, "momentum": 0.9}
    objective = objectives.find("beta_dpo")(**fields)
    (first,), _, carried = in_parts(objective, [PAIRS_A])
    start = mean(margins(PAIRS_A))
    assert float(first["step_beta"]) == pytest.approx(0.1, abs=1e-6)  # nothing to compare with yet
    second, _, _ = in_parts(objective, [PAIRS_B.part([1]), PAIRS_B.part([0, 2])], carried, 1)
    now = mean(margins(PAIRS_B))
    running = 0.9 * start + 0.1 * now
    expected = 0.1 * (1 + 0.6 * (now - running))
    for batch in second:
        assert float(batch["step_beta"]) == pytest.approx(expected, rel=1e-5)
        assert batch["kept_G"].all()


def test_beta_dpos_beta_stays_positive():
    objective = objectives.find("beta_dpo")(sensitivity=50.0, keep_ratio=1.0)
    _, _, carried = in_parts(objective, [PAIRS_B])
    low = Point(
        [[-9.0], [-1.0]],
        {"reference_logps_N": [[-1.0], [-9.0]], "chosen_G": [0], "rejected_G": [1]},
        [0, 0],
    )
    (batch,), _, _ = in_parts(objective, [low], carried, 1)
    assert float(batch["step_beta"]) == pytest.approx(1e-3, abs=1e-9)


def test_beta_dpos_defaults_and_ranges():
    cls = objectives.find("beta_dpo")
    assert cls() == cls(beta=0.1, sensitivity=0.6, keep_ratio=0.8, momentum=0.9)
    assert {"step_beta", "kept_G"} <= cls.prepared
    for nonsense in ({"keep_ratio": 0.0}, {"keep_ratio": 1.1}, {"momentum": 1.1}, {"beta": 0.0}):
        with pytest.raises(ValidationError):
            cls(**nonsense)
