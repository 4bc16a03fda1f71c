"""What every objective must hold, whatever its formula. A new file in objectives/ joins by itself.

Numbers against the papers are in test_<name>_oracle.py: a wrong loss can pass everything here.
"""

import dataclasses
import inspect
import math
import sys
from typing import get_args

import pytest
import torch
from flat_batches import all_columns, make_batch, random_batch, take
from pydantic import ValidationError

from truing import objectives
from truing.batch import COLUMNS, Outputs, combine
from truing.objectives.base import Trains, Unit

CLASSES = [objectives.find(name) for name in objectives.names()]
KNOBS = [(cls, field.name) for cls in CLASSES for field in dataclasses.fields(cls)]
STEP_ZERO = [(cls, metric) for cls in CLASSES for metric in cls.step_zero]
HEADS = {
    "policy": ("logps_N",),
    "reward": ("scores_C",),
    "policy+value": ("logps_N", "values_N"),
}
TRIALS = (0.07, 0.33, 0.9, 1, 4, True, False)

every_objective = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
every_knob = pytest.mark.parametrize(("cls", "knob"), KNOBS, ids=str)


def live(cls, outputs):
    """The same outputs as leaves of their own, and those the objective trains by name."""
    copies = {f.name: getattr(outputs, f.name) for f in dataclasses.fields(outputs)}
    copies = {name: v.clone() for name, v in copies.items() if v is not None}
    heads = {name: copies[name].requires_grad_() for name in HEADS[cls.trains]}
    return Outputs(**copies), heads


def judge(cls, batch, outputs, **knobs):
    """(loss, gradient of each head), computed on a copy of the outputs."""
    outputs, heads = live(cls, outputs)
    loss = cls(**knobs)(batch, outputs)
    loss.total.backward()
    return loss, {name: head.grad for name, head in heads.items()}


def same(left, right, tolerance=0.0):
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


@every_objective
def test_micro_batches_add_up(cls):
    batch, outputs = random_batch(cls.needs)
    whole = cls()(batch, outputs)
    parts = [cls()(*take(batch, outputs, groups)) for groups in ([3], [0, 4], [2, 1])]
    same(sum(part.total for part in parts), whole.total, 1e-10)
    assert sum(part.weight for part in parts) == whole.weight
    assert combine(part.metrics for part in parts) == pytest.approx(
        combine([whole.metrics]), rel=1e-5, abs=1e-6
    )


@every_objective
def test_the_order_of_groups_is_irrelevant(cls):
    batch, outputs = random_batch(cls.needs)
    ordered, shuffled = (
        judge(cls, *take(batch, outputs, order)) for order in ([0, 1, 2, 3, 4], [3, 0, 4, 2, 1])
    )
    same(shuffled[0].total, ordered[0].total, 1e-10)
    for name in HEADS[cls.trains]:
        same(shuffled[1][name].sort().values, ordered[1][name].sort().values, 1e-10)
    assert combine([shuffled[0].metrics]) == pytest.approx(
        combine([ordered[0].metrics]), rel=1e-5, abs=1e-6
    )


@every_objective
def test_a_batch_twice_is_twice_the_sum_and_the_same_mean(cls):
    batch, outputs = random_batch(cls.needs)
    once, twice = cls()(batch, outputs), cls()(*take(batch, outputs, [0, 1, 2, 3, 4] * 2))
    same(twice.total, 2 * once.total, 1e-10)
    assert twice.weight == 2 * once.weight
    assert combine([twice.metrics]) == pytest.approx(combine([once.metrics]), rel=1e-5, abs=1e-6)


@every_objective
def test_the_weight_counts_the_unit(cls):
    batch, outputs = random_batch(cls.needs, groups=3)
    counts = {"tokens": batch.size_N, "completions": batch.size_C, "pairs": 3}
    assert cls()(batch, outputs).weight == counts[cls.unit]


@every_objective
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_gradient_is_the_slope(cls, seed):
    batch, outputs = random_batch(cls.needs, seed=seed, groups=3)
    _, heads = live(cls, outputs)

    def total(*leaves):
        given = dataclasses.replace(outputs, **dict(zip(heads, leaves, strict=True)))
        return cls()(batch, given).total

    assert torch.autograd.gradcheck(total, tuple(heads.values()), eps=1e-6, atol=1e-7)
    _, gradients = judge(cls, batch, outputs)
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())


@every_objective
@pytest.mark.parametrize("signs", [(1, 1, 1, 1), (-1, -1, -1, -1), (1, -1, -1, 1)], ids=str)
@pytest.mark.parametrize("lengths", [[1, 1, 1, 1], [1, 0, 1, 2]], ids=str)
def test_finite_where_policy_and_data_are_ten_thousand_nats_apart(cls, lengths, signs):
    far_N = 1e4 * torch.tensor(signs, dtype=torch.float32)
    offered = {name: -far_N if name[-1] == "N" else [0, 1] for name in COLUMNS}
    offered |= {
        "chosen_G": [0, 3],
        "rejected_G": [1, 2],
        "scores_C": far_N,
        "label_C": [1, 0, 1, 0],
        "finished_C": [1, 0, 1, 0],
    }
    batch = make_batch(
        lengths, [0, 0, 1, 1], torch.float32, **{name: offered[name] for name in cls.needs}
    )
    loss, gradients = judge(cls, batch, Outputs(far_N, far_N.abs(), far_N, far_N))
    assert loss.total.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert all(math.isfinite(number) for number in combine([loss.metrics]).values())


@pytest.mark.parametrize(("cls", "metric"), STEP_ZERO, ids=str)
def test_what_is_declared_of_step_zero_holds_before_any_update(cls, metric):
    batch, outputs = random_batch(cls.needs, dtype=torch.float32)
    untouched = {
        "sampled_logps_N": outputs.logps_N,
        "reference_logps_N": outputs.logps_N,
        "values_N": outputs.values_N,
    }
    batch = batch.with_columns(**{k: v for k, v in untouched.items() if k in cls.needs})
    value, tolerance = cls.step_zero[metric]
    assert abs(combine([cls()(batch, outputs).metrics])[metric] - value) <= tolerance


@pytest.mark.parametrize(("cls", "metric"), STEP_ZERO, ids=str)
def test_what_is_declared_of_step_zero_can_fail(cls, metric):
    value, tolerance = cls.step_zero[metric]
    seen = combine([cls()(*random_batch(cls.needs)).metrics])[metric]
    assert abs(seen - value) > 10 * tolerance


@every_objective
def test_no_gradient_flows_into_the_columns(cls):
    batch, outputs = random_batch(cls.needs)
    outputs, _ = live(cls, outputs)
    columns = {
        name: v.requires_grad_() for name, v in batch.columns.items() if v.is_floating_point()
    }
    loss = cls()(batch.with_columns(**columns), outputs)
    loss.total.backward()
    assert [name for name, v in columns.items() if v.grad is not None and v.grad.any()] == []


@every_objective
def test_what_it_does_not_need_may_be_garbage(cls):
    batch, outputs = random_batch(cls.needs)
    clean, gradients = judge(cls, batch, outputs)
    garbage = {
        name: torch.full_like(getattr(outputs, name), math.nan)
        for name in ("logps_N", "values_N", "scores_C")
        if name not in HEADS[cls.trains]
    }
    dirty, dirty_gradients = judge(
        cls,
        batch.with_columns(**all_columns(batch, math.nan)),
        dataclasses.replace(outputs, **garbage),
    )
    assert combine([dirty.metrics]) == combine([clean.metrics])
    same((dirty.total, dirty_gradients), (clean.total, gradients))
    bare, bare_gradients = judge(
        cls, batch, Outputs(**{name: getattr(outputs, name) for name in HEADS[cls.trains]})
    )
    same((bare.total, bare_gradients), (clean.total, gradients))


@every_objective
def test_what_it_needs_matters_and_its_absence_is_explained(cls):
    batch, outputs = random_batch(cls.needs)
    clean = cls()(batch, outputs).total
    for name in cls.needs:
        column = batch[name]
        other = column.flip(0) if not column.is_floating_point() else column + 0.37
        assert cls()(batch.with_columns(**{name: other}), outputs).total != clean, name
        rest = {k: v for k, v in batch.columns.items() if k != name}
        with pytest.raises(KeyError, match=name):
            cls()(dataclasses.replace(batch, columns=rest), outputs)


@every_knob
def test_every_knob_does_something(cls, knob):
    batch, outputs = random_batch(cls.needs)
    default = getattr(cls(), knob)
    totals = {default: cls()(batch, outputs).total.item()}
    for trial in (*TRIALS, *get_args(cls.__pydantic_fields__[knob].annotation)):
        if isinstance(trial, bool) != isinstance(default, bool):
            continue
        try:
            altered = cls(**{knob: trial})
        except ValidationError:
            continue
        totals[getattr(altered, knob)] = altered(batch, outputs).total.item()
    assert len(totals) > 1
    assert len(set(totals.values())) >= min(3, len(totals)), totals


@every_knob
@pytest.mark.parametrize("nonsense", [-1.0, math.nan, "much"], ids=str)
def test_nonsense_is_refused(cls, knob, nonsense):
    with pytest.raises(ValidationError):
        cls(**{knob: nonsense})


@every_objective
def test_unknown_knobs_and_later_changes_are_refused(cls):
    with pytest.raises(ValidationError):
        cls(no_such_knob=1)
    for field in dataclasses.fields(cls):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(cls(), field.name, 0.5)


@every_objective
def test_metrics_are_plain_numbers_that_can_be_added(cls):
    batch, outputs = random_batch(cls.needs)
    loss, _ = judge(cls, batch, outputs)
    assert combine([loss.metrics])["loss"] == pytest.approx(
        loss.total.item() / loss.weight, rel=1e-6
    )
    for name, metric in loss.metrics.items():
        assert metric.total.shape == (), name
        assert not metric.total.requires_grad, name
        assert metric.weight > 0, name


@every_objective
def test_it_declares_itself(cls):
    assert cls.trains in get_args(Trains)
    assert cls.unit in get_args(Unit)
    assert cls.needs <= set(COLUMNS)
    assert dataclasses.is_dataclass(cls)
    assert set(cls.step_zero) <= set(cls()(*random_batch(cls.needs)).metrics)
    assert all(tolerance >= 0 for _, tolerance in cls.step_zero.values())


@every_objective
def test_its_page_has_the_formula_and_the_paper(cls):
    page = inspect.getdoc(sys.modules[cls.__module__])
    assert "Source:" in page
    assert "arXiv" in page
    assert [line for line in page.splitlines() if line.startswith("    ") and "=" in line]
    for name, field in cls.__pydantic_fields__.items():
        assert len(field.description or "") > 20, name


def test_the_suite_sees_every_objective():
    assert {"sft", "bradley_terry", "dpo", "ppo"} <= set(objectives.names())
