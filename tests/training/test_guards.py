"""What guards a run: steps that are skipped, memory that runs out, weights that must not change."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_step import built

from truing.config import Lora
from truing.errors import NumericsError, ResourceError
from truing.training.contract import check_alone, check_numbers
from truing.training.guards import FrozenWeights, check_finite, frozen_tensors


def broken(step, number):
    """NaN in the log-probs of one step."""
    compute = step.compute

    def then(batch):
        outputs = compute(batch)
        if step.taken + 1 != number:
            return outputs
        return replace(outputs, logps_N=outputs.logps_N * math.nan)

    step.compute = then


def taken(stage, number):
    works = iter(stage.source)
    return [
        stage.step(work.micro_batches, work.metrics, work.rows)
        for work, _ in zip(works, range(number), strict=False)
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_skipped_step_changes_nothing_but_the_place(dtype):
    """max_nonfinite_steps: weights and moments stay, data and schedule go on."""
    stage = built("sft", dtype=dtype, max_nonfinite_steps=1, num_train_epochs=3)
    plain = built("sft", dtype=dtype, num_train_epochs=3)
    broken(stage.step, 2)
    metrics = taken(stage, 4)
    works = list(plain.source)[:4]
    for number, work in enumerate(works, start=1):
        if number == 2:  # as if it were not there, at the schedule's next rate
            plain.step.schedule.step()
            plain.step.taken += 1
            continue
        plain.step(work.micro_batches, {})
    for name, master in stage.step.masters.masters.items():
        assert torch.equal(master, plain.step.masters.masters[name]), name
    assert metrics[1]["skipped_steps"] == 1
    assert not {"loss", "grad_norm", "learning_rate"} & metrics[1].keys()
    assert stage.step.skipped == [{"step": 2, "why": "loss is nan", "rows": [""] * 8}]


def test_a_step_on_own_samples_names_the_file_that_shows_them():
    stage = built("ppo", max_nonfinite_steps=1)
    broken(stage.step, 1)
    taken(stage, 1)
    assert stage.step.skipped[0]["rows"] == ["samples/rollout-0000.jsonl"]


def test_the_first_step_may_be_skipped_and_the_contract_is_asked_later():
    stage = built("dpo", max_nonfinite_steps=1)
    broken(stage.step, 1)
    metrics = taken(stage, 2)
    assert metrics[0]["skipped_steps"] == 1
    assert stage.step.first_metrics["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics[1]["loss"] == stage.step.first_metrics["loss"]


def test_by_default_none_is_skipped():
    stage = built("sft")
    broken(stage.step, 1)
    with pytest.raises(NumericsError, match="loss is nan") as caught:
        taken(stage, 1)
    assert "max_nonfinite_steps" in caught.value.remedy


def test_running_means_forget_what_a_skipped_step_said(monkeypatch):
    stage = built("dpo", max_nonfinite_steps=1)
    stage.step.carried["mean"] = torch.tensor(3.0)

    def prepare(self, step):
        step.carried["mean"] = torch.tensor(math.nan)
        return step.batches

    monkeypatch.setattr(type(stage.step.objective), "prepare", prepare)
    broken(stage.step, 1)
    taken(stage, 1)
    assert stage.step.carried["mean"] == 3.0


@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_every_frozen_tensor_is_watched(method, lora):
    stage = built(method, lora)
    learns = {id(p) for p in stage.step.masters.computing.values()}
    networks = [stage.roles.policy, *filter(None, [stage.roles.reference_copy])]
    frozen = [p for network in networks for p in network.parameters() if id(p) not in learns]
    assert frozen
    assert {t.data_ptr() for _, _, t in stage.frozen.tensors} == {p.data_ptr() for p in frozen}
    stage.frozen.check("here")
    for _, name, tensor in stage.frozen.tensors[:: max(1, len(stage.frozen.tensors) // 5)]:
        before = tensor.detach().clone()
        with torch.no_grad():
            tensor.view(-1)[-1].add_(1e-3)
        with pytest.raises(NumericsError, match="have changed") as caught:
            stage.frozen.check("here")
        assert name in caught.value.what
        with torch.no_grad():
            tensor.copy_(before)
    stage.frozen.check("here")


def test_a_reference_that_moves_is_not_frozen():
    stage = built("tr_dpo")
    assert not [part for part, _, _ in stage.frozen.tensors if part == "reference"]
    assert [part for part, _, _ in frozen_tensors(stage.roles, reference_moves=False)]


def test_shared_weights_are_hashed_once():
    stage = built("dpo")
    stage.roles.reward_copy = stage.roles.reference_copy
    found = FrozenWeights([*frozen_tensors(stage.roles, reference_moves=False)])
    assert len(found.digests) == len(stage.frozen.digests)


def test_weights_that_are_not_finite_are_not_kept():
    largest = torch.finfo(torch.float32).max
    check_finite({"w": torch.ones(2), "count": torch.tensor(3)}, "here")
    check_finite({"w": torch.full((9,), largest)}, "here")  # what they add up to is too large
    with pytest.raises(NumericsError, match="w is not finite"):
        check_finite({"w": torch.tensor([math.inf, -math.inf, 1.0])}, "here")
    with pytest.raises(NumericsError, match="w is not finite"):
        check_finite({"w": torch.tensor([1.0, math.inf])}, "here")


@pytest.mark.parametrize("method", ["sft", "bradley_terry"])
def test_groups_do_not_hear_each_other_nor_chance(method):
    for dtype in (torch.bfloat16, torch.float32):
        stage = built(method, dtype=str(dtype).removeprefix("torch."))
        batch = next(iter(stage.source)).micro_batches[0]
        check_alone(stage.step.measured, batch, dtype, "here")
    embedding = stage.roles.policy.base.get_input_embeddings()
    embedding.register_forward_hook(lambda m, i, o: torch.nn.functional.dropout(o, 0.1))
    with pytest.raises(NumericsError, match="differ by"):
        check_alone(stage.step.measured, batch, torch.float32, "here")


def test_halved_micro_batches_widen_the_contract_by_rounding_alone():
    check_numbers({"val/ratio": (1.0, 0.0)}, {"val/ratio": 1.000001}, "here", 1e-5)
    with pytest.raises(NumericsError, match="val/ratio"):
        check_numbers({"val/ratio": (1.0, 0.0)}, {"val/ratio": 1.000001}, "here")
    with pytest.raises(NumericsError, match="val/ratio"):
        check_numbers({"val/ratio": (1.0, 0.0)}, {"val/ratio": 1.001}, "here", 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["sft", "dpo", "ppo"])
def test_a_backward_pass_that_breaks_off_leaves_nothing(method, dtype):
    """Gradients of the half-done pass, and of those before it, are not counted twice."""
    stage, plain = built(method, dtype=dtype), built(method, dtype=dtype)
    stage.step.memory.say = print
    backward = type(stage.step)._backward

    def once(self, batch):
        loss = backward(self, batch)
        if self is stage.step and batch.size_G > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    type(stage.step)._backward = once
    try:
        halved, whole = taken(stage, 1), taken(plain, 1)
    finally:
        type(stage.step)._backward = backward
    assert halved[0]["memory/halved"] >= 1
    assert halved[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-2, abs=1e-3)
    assert halved[0]["grad_norm"] == pytest.approx(whole[0]["grad_norm"], rel=1e-2)


def test_what_cannot_be_halved_says_what_to_do():
    stage = built("sft")

    def compute(batch):
        raise MemoryError

    stage.step.compute, stage.step.memory.say = compute, print
    with pytest.raises(ResourceError, match="single group"):
        taken(stage, 1)
