"""What every objective must hold, whatever its formula. A new file in objectives/ joins by itself.

Numbers against the papers are in test_<name>_oracle.py: a wrong loss can pass everything here.
Every step goes through `prepare` first, so batch-coupled methods are held to the same laws.
"""

import dataclasses
import math
from typing import get_args

import pytest
import torch
from flat_batches import INDICES, all_columns, make_batch, prepare, random_batch, take
from pydantic import ValidationError
from subjects import (
    CLASSES,
    SUBJECTS,
    choices,
    every_class,
    every_subject,
    heads,
    raw_columns,
    undrawn,
)

from truing import objectives
from truing.batch import COLUMNS, Outputs, combine
from truing.objectives.base import Trains, Unit

KNOBS = [(name, f.name) for name, cls in CLASSES.items() for f in dataclasses.fields(cls)]
every_knob = pytest.mark.parametrize(("name", "knob"), KNOBS, ids=lambda part: part)
with_step_zero = pytest.mark.parametrize(
    ("subject", "metric"),
    [
        pytest.param(subject, metric, id=f"{name}-{metric}")
        for name, subject in SUBJECTS.items()
        for metric in subject.step_zero
    ],
)

TRIALS = (0.07, 0.33, 0.9, 1, 4)
TRIALS_OF = {
    ("PPO", "dual_clip"): (1.05, 1.2, 1.5),
    ("GRPO", "dual_clip"): (1.05, 1.2, 1.5),
    ("CISPO", "ratio_max"): (0.8, 1.0, 1.2),
    ("CISPO", "ratio_min"): (0.8, 0.9, 1.0),
    ("LDDPO", "alpha"): (0.0, 0.3, 0.7),
    ("Mixture", "parts"): (
        [{"method": "dpo", "weight": 2.0}, {"method": "sft", "weight": 0.2}],
        [{"method": "dpo", "beta": 0.7}, {"method": "sft", "weight": 0.2}],
        [{"method": "dpo"}, {"method": "simpo", "weight": 0.5}],
    ),
}
"""Values that bite, where the general ones cannot: out of range, or beyond any ratio."""
WITH = {
    "max_completion_length": {"aggregation": "constant"},
    ("FDPO", "alpha"): {"divergence": "alpha"},
}
"""What must be set for a knob to be read at all."""
FOR_TRAINING = {("TRDPO", "mixup_alpha"), ("TRDPO", "sync_steps")}
"""Knobs that move the reference; the loss never sees them."""
FOR_THE_NETWORK = {"step_end_S"}
"""Columns that say where an output is read: the loss needs it through that output."""


def run(subject, parts, **step):
    """(losses of the micro-batches, gradient of each head of each), after one `prepare`."""
    losses, gradients = [], []
    for batch, outputs in prepare(subject, parts, **step):
        copies = {f.name: getattr(outputs, f.name) for f in dataclasses.fields(outputs)}
        copies = {name: v.clone() for name, v in copies.items() if v is not None}
        leaves = {name: copies[name].requires_grad_() for name in heads(subject)}
        loss = subject(batch, Outputs(**copies))
        loss.total.backward()
        losses.append(loss)
        gradients.append({name: v.grad for name, v in leaves.items()})
    return losses, gradients


def total(losses):
    return sum(loss.total.detach() for loss in losses)


def mean(losses):
    return total(losses).item() / sum(loss.weight for loss in losses)


def metrics(losses):
    return combine(loss.metrics for loss in losses)


def same(left, right, tolerance=0.0):
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def joined(gradients, name):
    return torch.cat([gradient[name] for gradient in gradients])


def same_step(left, right, *, scale=1.0, ordered=True):
    """Two ways to take a step: equal sums, weights, metrics and (unless repeated) gradients."""
    (losses, gradients), (others, other_gradients) = left, right
    same(scale * total(losses), total(others), 1e-10)
    assert scale * sum(loss.weight for loss in losses) == sum(loss.weight for loss in others)
    assert metrics(others) == pytest.approx(metrics(losses), rel=1e-5, abs=1e-6, nan_ok=True)
    if scale == 1.0:
        for name in gradients[0]:
            pair = (joined(gradients, name), joined(other_gradients, name))
            same(*(pair if ordered else (v.sort().values for v in pair)), 1e-10)


@every_subject
def test_micro_batches_add_up(subject):
    batch, outputs = random_batch(raw_columns(subject))
    whole = take(batch, outputs, [3, 0, 4, 2, 1])
    parts = [take(batch, outputs, groups) for groups in ([3], [0, 4], [2, 1])]
    same_step(run(subject, [whole]), run(subject, parts))


@every_subject
def test_what_is_carried_to_the_next_step_adds_up_too(subject):
    batch, outputs = random_batch(raw_columns(subject))
    later = random_batch(raw_columns(subject), seed=1)
    kept, cut = {}, {}
    run(subject, [take(batch, outputs, [3, 0, 4, 2, 1])], carried=kept)
    run(subject, [take(batch, outputs, groups) for groups in ([3], [0, 4], [2, 1])], carried=cut)
    same(cut, kept, 1e-10)
    assert all(not v.requires_grad for v in kept.values())
    carried, fresh = (mean(run(subject, [later], carried=c, number=1)[0]) for c in (kept, {}))
    assert (carried != fresh) == bool(kept)


@every_subject
def test_the_order_of_groups_is_irrelevant(subject):
    subject = undrawn(subject)
    batch, outputs = random_batch(raw_columns(subject))
    steps = (
        run(subject, [take(batch, outputs, order)]) for order in ([0, 1, 2, 3, 4], [3, 0, 4, 2, 1])
    )
    same_step(*steps, ordered=False)


@every_subject
def test_a_batch_twice_is_twice_the_sum_and_the_same_mean(subject):
    subject = undrawn(subject)
    batch, outputs = random_batch(raw_columns(subject))
    once = run(subject, [(batch, outputs)])
    same_step(once, run(subject, [take(batch, outputs, [0, 1, 2, 3, 4] * 2)]), scale=2)
    same_step(once, run(subject, [(batch, outputs), take(batch, outputs, range(5))]), scale=2)


@every_subject
def test_the_weight_counts_the_unit(subject):
    ((batch, outputs),) = prepare(subject, [random_batch(raw_columns(subject), groups=3)])
    if "demonstration_C" in batch:
        batch = batch.keep(~batch["demonstration_C"])
    if "mismatched_C" in batch:
        batch = batch.keep(~batch["mismatched_C"])
    if "part_weights" in batch and subject.unit == "tokens":  # of a pair, SFT imitates the chosen
        chosen_C = torch.isin(torch.arange(batch.size_C), batch["chosen_G"])
        assert subject.weigh(batch) == batch.lengths_C[chosen_C].sum()
        return
    counts = {
        "tokens": batch.size_N,
        "completions": batch.size_C,
        "pairs": int(batch["kept_G"].sum()) if "kept_G" in batch else batch.size_G,
        "groups": batch.size_G,
        "steps": 0 if outputs.scores_S is None else outputs.scores_S.numel(),
    }
    unit = subject.unit
    if hasattr(subject, "aggregation"):
        unit = "tokens" if subject.aggregation == "token" else "completions"
    assert subject.weigh(batch) == counts[unit]


class Tape:
    """`detach` that remembers: what it gave at one point it gives again at others.

    A weight behind a stop-gradient is a constant to the derivative, so the slope that a gradient
    must equal is the slope with those weights held.
    """

    def __init__(self, monkeypatch):
        self.kept, self.at, self.recording = [], 0, True
        plain = torch.Tensor.detach

        def detach(tensor):
            if self.recording:
                self.kept.append(plain(tensor).clone())
                return plain(tensor)
            self.at += 1
            return self.kept[self.at - 1]

        monkeypatch.setattr(torch.Tensor, "detach", detach)

    def replay(self):
        self.recording, self.at = False, 0


def slopes(function, point, step=1e-6):
    """Central differences of a scalar function, one coordinate at a time."""
    found = torch.zeros_like(point)
    for i in range(point.numel()):
        move = torch.zeros_like(point)
        move[i] = step
        found[i] = (function(point + move) - function(point - move)) / (2 * step)
    return found


@every_subject
@pytest.mark.parametrize("seed", [1, 2])
def test_the_gradient_is_the_slope(subject, seed, monkeypatch):
    raw = random_batch(raw_columns(subject), seed=seed, groups=3)
    ((batch, outputs),) = prepare(subject, [raw])
    gradients = run(subject, [raw])[1][0]
    tape = Tape(monkeypatch)
    for name in heads(subject):
        tape.kept.clear()
        tape.recording = True
        point = getattr(outputs, name).clone()
        subject(batch, dataclasses.replace(outputs, **{name: point}))

        def at(values, name=name):
            tape.replay()
            return subject(batch, dataclasses.replace(outputs, **{name: values})).total

        same(gradients[name], slopes(at, point), 1e-6)
        assert gradients[name].abs().sum() > 0


@pytest.mark.parametrize("title", ["aot", "aot[pairing=unpaired]"])
def test_aots_gradient_is_the_slope_of_the_whole_sorted_step(title):
    """Its rivals are numbers to a micro-batch, but each side pulls: together they are exact."""
    subject = SUBJECTS[title]
    batch, outputs = random_batch(raw_columns(subject))

    def at(logps_N):
        moved = dataclasses.replace(outputs, logps_N=logps_N)
        return total(subject(*part) for part in prepare(subject, [(batch, moved)]))

    gradient = run(subject, [(batch, outputs)])[1][0]["logps_N"]
    same(gradient, slopes(at, outputs.logps_N), 1e-7)


def far(subject, signs, lengths):
    """Four completions in float32; certain (P = 1) or at −10,000 nats, the data the other way."""
    up = torch.tensor(signs, dtype=torch.float32) > 0
    high_N, low_N = torch.where(up, 0.0, -1e4), torch.where(up, -1e4, 0.0)
    reward_N = torch.where(up, 1e4, -1e4)
    offered = {name: -reward_N if name[-1] == "N" else [0, 1] for name in COLUMNS}
    offered |= {
        "sampled_logps_N": low_N,
        "reference_logps_N": low_N,
        "chosen_G": [0, 3],
        "rejected_G": [1, 2],
        "scores_C": reward_N,
        "label_C": [1, 0, 1, 0],
        "finished_C": [1, 0, 1, 0],
        "mismatched_C": [0, 1, 0, 0],
        "demonstration_C": [0, 0, 0, 1],
        "of_reference_C": [0, 1, 1, 0],
        "baseline_C": -reward_N,
        "step_end_S": [1, 2],
    }
    batch = make_batch(
        lengths, [0, 0, 1, 1], torch.float32, **{n: offered[n] for n in raw_columns(subject)}
    )
    scores_S = torch.tensor([1e4, -1e4]) * signs[0]
    return batch, Outputs(high_N, high_N.abs(), reward_N, reward_N, scores_S, high_N)


@every_subject
@pytest.mark.parametrize("signs", [(1, 1, 1, 1), (-1, -1, -1, -1), (1, -1, -1, 1)], ids=str)
@pytest.mark.parametrize("lengths", [[1, 1, 1, 1], [1, 0, 1, 2]], ids=str)
def test_finite_where_policy_and_data_are_ten_thousand_nats_apart(subject, lengths, signs):
    losses, gradients = run(subject, [far(subject, signs, lengths)])
    assert losses[0].total.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients[0].values())
    assert all(math.isfinite(number) for number in metrics(losses).values())


@with_step_zero
def test_what_is_declared_of_step_zero_holds_before_any_update(subject, metric):
    batch, outputs = random_batch(raw_columns(subject), dtype=torch.float32)
    untouched = {
        "sampled_logps_N": outputs.logps_N,
        "reference_logps_N": outputs.logps_N,
        "values_N": outputs.values_N,
    }
    batch = batch.with_columns(**{k: v for k, v in untouched.items() if k in batch})
    value, tolerance = subject.step_zero[metric]
    seen = metrics(run(subject, [(batch, outputs)])[0])[metric]
    assert abs(seen - value) <= tolerance


@with_step_zero
def test_what_is_declared_of_step_zero_can_fail(subject, metric):
    value, tolerance = subject.step_zero[metric]
    seen = metrics(run(subject, [random_batch(raw_columns(subject))])[0])[metric]
    assert abs(seen - value) > 10 * tolerance


@every_subject
def test_no_gradient_flows_into_the_columns(subject):
    ((batch, outputs),) = prepare(subject, [random_batch(raw_columns(subject))])
    leaves = {n: v.clone() for n, v in batch.columns.items() if v.is_floating_point()}
    leaves = {name: v.requires_grad_() for name, v in leaves.items()}
    learn = {name: getattr(outputs, name).clone().requires_grad_() for name in heads(subject)}
    subject(batch.with_columns(**leaves), dataclasses.replace(outputs, **learn)).total.backward()
    assert [name for name, v in leaves.items() if v.grad is not None and v.grad.any()] == []


@every_subject
def test_what_it_does_not_need_may_be_garbage(subject):
    batch, outputs = random_batch(raw_columns(subject))
    read = {*heads(subject), *subject.extra_outputs}
    garbage = {
        f.name: torch.full_like(getattr(outputs, f.name), math.nan)
        for f in dataclasses.fields(outputs)
        if f.name not in read and f.name != "entropy_N"  # comes with log-probs, only ever measured
    }
    dirty_batch = batch.with_columns(**all_columns(batch, math.nan))
    clean = run(subject, [(batch, outputs)])
    dirty = run(subject, [(dirty_batch, dataclasses.replace(outputs, **garbage))])
    assert metrics(dirty[0]) == metrics(clean[0])
    same((total(dirty[0]), dirty[1]), (total(clean[0]), clean[1]))
    bare = run(subject, [(batch, Outputs(**{name: getattr(outputs, name) for name in read}))])
    same((total(bare[0]), bare[1]), (total(clean[0]), clean[1]))


def other(column):
    """The same kind of column, with other contents."""
    if column.dtype == torch.bool:
        return ~column
    if not column.is_floating_point():  # a permuted choice leaves linear losses as they are
        return column.index_fill(0, torch.tensor([0]), int(column[1]))
    return column.flip(0) * 1.7


@every_subject
def test_what_it_needs_matters_and_its_absence_is_explained(subject):
    batch, outputs = random_batch(raw_columns(subject))
    clean = mean(run(subject, [(batch, outputs)])[0])
    unread = {"values_N"} if getattr(subject, "cliprange_value", 1) is None else FOR_THE_NETWORK
    for name in raw_columns(subject) - unread:
        altered = batch.with_columns(**{name: other(batch[name])})
        assert mean(run(subject, [(altered, outputs)])[0]) != clean, name
        rest = {k: v for k, v in batch.columns.items() if k != name}
        with pytest.raises(KeyError, match=name):
            run(subject, [(dataclasses.replace(batch, columns=rest), outputs)])


def second_step(subject, columns):
    """The mean loss of a step that follows another: running means have begun to run."""
    carried = {}
    run(subject, [random_batch(columns)], carried=carried)
    return mean(run(subject, [random_batch(columns, seed=1)], carried=carried, number=1)[0])


@every_knob
def test_every_knob_does_something(name, knob):
    cls = CLASSES[name]
    fixed = WITH.get(knob, WITH.get((cls.__name__, knob), {}))
    options = choices(cls, knob)
    tried = [cls(**fixed)]
    for trial in options or (*TRIALS_OF.get((cls.__name__, knob), TRIALS), None):
        try:
            subject = cls(**fixed, **{knob: trial})
        except ValidationError:
            continue
        if subject not in tried:
            tried.append(subject)
    columns = frozenset().union(*(raw_columns(subject) for subject in tried))
    losses = {second_step(subject, columns) for subject in tried}
    if (cls.__name__, knob) in FOR_TRAINING:
        assert len(losses) == 1
        return
    assert len(losses) >= (len(options) or 3), (tried, losses)


@every_knob
@pytest.mark.parametrize("nonsense", [-1.0, math.nan, math.inf, "much", [None]], ids=str)
def test_nonsense_is_refused(name, knob, nonsense):
    with pytest.raises(ValidationError):
        CLASSES[name](**{knob: nonsense})


@every_class
def test_unknown_knobs_and_later_changes_are_refused(cls):
    with pytest.raises(ValidationError):
        cls(no_such_knob=1)
    for field in dataclasses.fields(cls):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(cls(), field.name, 0.5)


@every_subject
def test_metrics_are_plain_numbers_that_can_be_added(subject):
    losses, _ = run(subject, [random_batch(raw_columns(subject))])
    assert metrics(losses)["loss"] == pytest.approx(mean(losses), rel=1e-6)
    for name, metric in losses[0].metrics.items():
        assert metric.total.shape == (), name
        assert not metric.total.requires_grad, name
        assert metric.weight >= 0, name


@every_subject
def test_it_declares_itself(subject):
    assert subject.trains in get_args(Trains)
    assert subject.unit in get_args(Unit)
    assert subject.needs | subject.prepared <= subject.required | subject.prepared <= set(COLUMNS)
    assert subject.extra_outputs <= {f.name for f in dataclasses.fields(Outputs)}
    raw = random_batch(raw_columns(subject))
    ((batch, _),) = prepare(subject, [raw])
    assert set(batch.columns) - set(raw[0].columns) == subject.prepared
    assert all(name not in INDICES for name in subject.prepared)
    assert set(subject.step_zero) <= set(run(subject, [raw])[0][0].metrics)
    assert all(tolerance >= 0 for _, tolerance in subject.step_zero.values())


@every_class
def test_every_field_says_what_it_is(cls):
    for name, field in cls.__pydantic_fields__.items():
        assert len(field.description or "") > 20, name


def test_the_suite_sees_every_objective():
    assert len(objectives.names()) > 40
    assert len(SUBJECTS) > 60
    assert {"sft", "bradley_terry", "dpo", "kto", "infonca", "ppo", "grpo"} <= set(CLASSES)
