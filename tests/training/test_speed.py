"""What a run says of its speed at its end: what was computed, in what time, near what limit."""

from __future__ import annotations

import pytest
import torch
from test_step import built

from small_groups import random_groups
from truing.data.packing import micro_batches
from truing.models.network import Network
from truing.planning import flops
from truing.planning.flops import Flops, Work
from truing.rundir import RunDirectory
from truing.training import speed
from truing.training.loop import measure, train
from truing.training.meter import Meter
from truing.training.speed import Shape, Speed, measured_matmul_rate, measured_speed, shapes

CPU = torch.device("cpu")


def run(stage, folder, evaluate=None):
    train(stage.step, stage.source, RunDirectory(folder), lambda *_: None, stage.meter, evaluate)
    return RunDirectory(folder).metrics()


def work_of(groups):
    found = Work()
    for group in groups:
        found += flops.group_work(len(group.prompt_ids), [len(c.ids) for c in group.completions])
    return found


def test_every_epoch_counts_and_held_out_rows_do_not(tmp_path):
    stage = built("dpo", num_train_epochs=2, eval_rows=4, micro_batch_tokens=60)
    lines = run(stage, tmp_path, lambda: measure(stage.step, stage.heldout))
    once = work_of(random_groups(1, 16, 2, pairs=True))
    assert stage.meter.total("train") == once + once
    assert stage.meter.total("reference") == once + once
    assert stage.meter.total("train").tokens == lines[-1]["tokens"]
    assert set(stage.meter.work) == {"train", "reference"}
    assert stage.meter.passes > stage.step.taken
    assert stage.meter.aside_seconds > 0


def test_a_reward_model_computes_no_logits(tmp_path):
    stage = built("bradley_terry")
    run(stage, tmp_path)
    assert stage.meter.total("train").predicted == 0
    said = measured_speed(stage.meter, stage.roles, "reward")
    assert said.flops["train"].head == 0


def test_a_rollout_counts_drawing_measuring_reference_and_training(tmp_path):
    stage = built("ppo", num_train_epochs=2)
    drawn = []
    stage.source.on_rollout = lambda _, rollout: drawn.extend(rollout.groups)
    lines = run(stage, tmp_path)
    once = work_of(drawn)
    assert len(drawn) == 16
    assert stage.meter.total("forward") == stage.meter.total("reference") == once
    assert stage.meter.total("train") == once + once
    expected = Work()
    for group in drawn:
        lengths = [len(c.ids) for c in group.completions]
        expected += flops.sampling_work(len(group.prompt_ids), lengths)
    assert stage.meter.total("sample") == expected
    assert stage.meter.drawn == expected.predicted
    # each of two rollouts is learnt from twice; its first line says what drawing took
    assert ["timing/sample_seconds" in line for line in lines] == [True, False] * 2


@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_the_times_of_all_lines_add_up(method, tmp_path):
    knobs = {"eval_rows": 4} if method == "dpo" else {}
    stage = built(method, **knobs)
    evaluate = (lambda: measure(stage.step, stage.heldout)) if stage.heldout else None
    lines = run(stage, tmp_path, evaluate)
    spent = sum(
        line.get(f"timing/{part}_seconds", 0) for line in lines for part in ("train", "sample")
    )
    assert spent + stage.meter.aside_seconds == pytest.approx(lines[-1]["seconds"], abs=2e-3)
    assert stage.meter.train_seconds == pytest.approx(
        sum(line.get("timing/train_seconds", 0) for line in lines), abs=5e-3
    )


def test_what_was_computed_before_the_first_step_is_forgotten(tmp_path):
    stage = built("dpo", eval_rows=16)  # held-out rows were given their reference while building
    assert stage.meter.total("reference").tokens > 0
    run(stage, tmp_path)
    assert stage.meter.total("reference") == stage.meter.total("train")


def test_the_rate_is_operations_over_median_seconds(monkeypatch):
    taken = {(8, 4): [9.0, 1.0, 2.0, 50.0], (4, 2): [9.0, 0.1, 1.0, 1.5]}
    calls = {key: iter(values) for key, values in taken.items()}
    clock = iter([0.0, 0.1, 0.2, 0.3, 10.0])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(speed, "_seconds_of", lambda left, right: next(calls[tuple(right.shape)]))
    products = [Shape(3, 4, 8), Shape(3, 2, 4), Shape(3, 2, 4)]
    # the first call of each warms up; a product that comes twice counts twice
    rate = measured_matmul_rate(torch.float32, CPU, products)
    assert rate == pytest.approx((2 * 3 * 4 * 8 + 2 * 2 * 3 * 2 * 4) / (2.0 + 1.0 + 1.0))


def test_measuring_the_rate_is_short_and_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    started = speed.time.perf_counter()
    assert measured_matmul_rate(torch.bfloat16, CPU, [Shape(4096, 64, 64)]) > 0
    assert speed.time.perf_counter() - started < 2
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_shapes_are_the_models_own():
    network: Network = built("sft").roles.policy
    found = shapes(network, 100, 30)
    layer = [
        (p.shape[1], p.shape[0])
        for n, p in network.trunk.layers[0].named_parameters()
        if p.ndim == 2
    ]
    assert sorted(s[1:] for s in found[:-1]) == sorted(layer)
    assert {s.rows for s in found[:-1]} == {100}
    assert found[-1] == (30, 64, network.vocabulary_weight.shape[0])
    assert shapes(network, 100, 0) == found[:-1]


def stated(**changed):
    given = {
        "flops": {"train": Flops(600, 200, 100), "sample": Flops(80, 10, 10)},
        "rate": 100.0,
        "train_seconds": 18.0,
        "sample_seconds": 2.0,
        "tokens": 360,
        "drawn": 50,
    }
    return Speed(**{**given, **changed})


def test_the_statement_is_limit_over_time():
    said = stated()
    assert said.fraction == pytest.approx(10 / 20)
    assert said.facts["fraction_of_arithmetic_limit"] == said.fraction
    assert said.facts["seconds_at_limit"]["train"] == {"linear": 6, "attention": 2, "head": 1}
    assert str(said) == (
        "0.5 of the arithmetic limit (2x the floor): 1000 FLOP at 100 FLOP/s = 10 s of 20 s "
        "(train 900 FLOP, sample 100 FLOP); drew 25 tokens/s in 2 s (0.5 of the limit), "
        "trained on 20 tokens/s in 18 s (0.5)"
    )


def test_without_drawing_nothing_is_divided_by_its_time():
    said = stated(flops={"train": Flops(900)}, sample_seconds=0.0, drawn=0)
    assert said.fraction == pytest.approx(0.5)
    assert str(said).endswith("(train 900 FLOP); trained on 20 tokens/s")


def test_the_floor_is_below_what_was_done(tmp_path):
    """A sanity bound on units: a tiny model is far from its limit, but not by a million."""
    stage = built("dpo")
    run(stage, tmp_path)
    said = measured_speed(stage.meter, stage.roles, "policy")
    assert 1e-4 < said.fraction < 1
    assert said.tokens == stage.meter.total("train").tokens


def test_the_meter_sees_micro_batches_as_the_step_does():
    groups = random_groups(3, 6, 2)
    assert Meter().total("train") == Work()
    assert sum(work_of(part).tokens for part in micro_batches(groups, 30)) == work_of(groups).tokens


@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_layers_below_the_adapters_are_counted_once_for_all_passes(method, tmp_path):
    stage = built(method, num_train_epochs=2, lora={"rank": 2, "last_layers": 1})
    run(stage, tmp_path)
    meter = stage.meter
    trained, placed = meter.total("train"), meter.total("frozen")
    # rows are placed anew each epoch, a rollout once for both
    assert trained.tokens == (2 if method == "ppo" else 1) * placed.tokens
    said = measured_speed(meter, stage.roles, "policy")
    sizes = speed.model_sizes(stage.roles.policy, "policy")
    expected = flops.training(sizes, trained) - flops.lower(sizes, trained)
    assert said.flops["train"] == expected
    assert said.flops["frozen"] == flops.lower(sizes, placed) != Flops()
