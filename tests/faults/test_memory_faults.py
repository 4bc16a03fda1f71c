"""Memory that runs out in a micro-batch, and frozen weights that something writes into."""

from __future__ import annotations

import json
import resource
from functools import partial
from pathlib import Path

import pytest
import torch
from harness import (
    GENTLE,
    close,
    facts,
    fire,
    left_by,
    lines,
    same,
    stage_folder,
    stopped,
    succeeded,
    truing,
)

from faults.matrix import POLICY_GRADIENT, TRAINED


def cpu_allocator():
    """An allocation that fails for real."""
    torch.empty(2**50)


def cuda_allocator():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def python_allocator():
    raise MemoryError


def out_of_memory(error, groups=1, backward=True):
    """No pass of the network with a gradient fits that holds more than `groups` groups; the error
    comes half-way through the backward pass, or in the forward pass."""
    from truing.training.step import Step

    compute = Step._backward

    def then(self, batch):
        if batch.size_G <= groups:
            return compute(self, batch)
        fire()
        if backward:
            compute(self, batch)  # what is half-done has left its gradients
        error()
        raise AssertionError

    Step._backward = then


def rows_that_do_not_fit(error, rows):
    """No more than so many completions can be drawn at once."""
    from truing.rollouts.engines import local

    init = local._Drawing.__init__

    def then(self, *args):
        init(self, *args)
        if self.size > rows:
            fire()
            error()

    local._Drawing.__init__ = then


ERRORS = [
    cpu_allocator,
    pytest.param(cuda_allocator, marks=pytest.mark.full),
    pytest.param(python_allocator, marks=pytest.mark.full),
]


@pytest.mark.fault("P12")
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("stage", TRAINED)
def test_a_micro_batch_that_does_not_fit_is_halved(stage, error, out, gentle):
    result = succeeded(truing(stage, out, *GENTLE, plant=[partial(out_of_memory, error)]))
    close(stage, out, gentle(stage))
    assert result.said.count("it is computed in halves") == 1
    halved = sum(line.get("memory/halved", 0) for line in lines(stage, out))
    assert facts(stage, out)["memory_halved"] == halved > 0
    # the loss of every step is that of the whole micro-batches
    for mine, theirs in zip(lines(stage, out), lines(stage, gentle(stage)), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
        assert mine["tokens"] == theirs["tokens"]


def passes_that_do_not_fit(error):
    """No pass of any network without a gradient fits that holds more than one group."""
    from truing.models.network import Network

    forward = Network.forward

    def then(self, batch, **asked):
        if not torch.is_grad_enabled() and batch.size_G > 1:
            fire()
            error()
        return forward(self, batch, **asked)

    Network.forward = then


@pytest.mark.fault("P12")
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("stage", TRAINED)
def test_passes_without_a_gradient_are_halved(stage, error, out, gentle):
    """Of the reference, the critic and the reward model, on held-out rows and in rollouts."""
    result = succeeded(truing(stage, out, *GENTLE, plant=[partial(passes_that_do_not_fit, error)]))
    close(stage, out, gentle(stage))
    assert result.said.count("it is computed in halves") == 1
    assert facts(stage, out)["memory_halved"] > 0


def memory_gone_once_it_is_judged():
    from truing.pipeline.stages import train

    judge = train.judge

    def then(*args):
        passes_that_do_not_fit(cpu_allocator)
        return judge(*args)

    train.judge = then


@pytest.mark.fault("P12", "reward")
def test_what_is_halved_after_the_last_step_is_declared_too(out, whole):
    result = succeeded(truing("reward", out, plant=[memory_gone_once_it_is_judged]))
    assert "it is computed in halves" in result.said
    assert facts("reward", out)["memory_halved"] > 0
    weights = "model.safetensors"
    assert left_by("reward", out)[weights] == whole("reward")[weights]


@pytest.mark.fault("P12", "best_of_n")
def test_best_of_n_asks_its_reward_model_in_halves(out, gentle):
    model = ("--reward", str(gentle("reward") / "bradley_terry"))
    other = out.parent / "other"
    succeeded(truing("best_of_n", other, *model))
    result = truing(
        "best_of_n", out, *model, plant=[partial(passes_that_do_not_fit, cpu_allocator)]
    )
    assert "it is computed in halves" in succeeded(result).said
    assert facts("best_of_n", out)["memory_halved"] > 0
    chosen, expected = (
        (stage_folder("best_of_n", folder) / "samples/best.jsonl").read_text().splitlines()
        for folder in (out, other)
    )
    assert [json.loads(line)["completion"] for line in chosen] == [
        json.loads(line)["completion"] for line in expected
    ]


@pytest.mark.fault("P12", "best_of_n")
def test_fewer_completions_are_drawn_at_once(out, whole):
    result = succeeded(
        truing("best_of_n", out, plant=[partial(rows_that_do_not_fit, cpu_allocator, 4)])
    )
    same("best_of_n", out, whole("best_of_n"))
    assert "from here on 4" in result.said
    assert facts("best_of_n", out)["memory_halved"] == 2  # from 16


@pytest.mark.full
@pytest.mark.fault("P12")
@pytest.mark.parametrize("stage", POLICY_GRADIENT)
def test_rollouts_draw_fewer_at_once(stage, out, whole):
    plant = partial(rows_that_do_not_fit, cuda_allocator, 2)
    succeeded(truing(stage, out, plant=[plant]))
    mine, theirs = lines(stage, out), lines_of(whole(stage))
    assert [line["loss"] for line in mine] == pytest.approx([line["loss"] for line in theirs])


def lines_of(left):
    return [value for name, value in left.items() if name.startswith("metrics line")]


@pytest.mark.full
@pytest.mark.fault("P12")
@pytest.mark.parametrize("stage", TRAINED)
def test_a_single_group_that_does_not_fit_stops(stage, out, whole):
    plant = partial(out_of_memory, cpu_allocator, 0)
    result = truing(stage, out, plant=[plant])
    stopped(result, 6, "single group", "cannot be divided", "gradient_checkpointing")
    succeeded(truing(stage, out, "--resume"))
    same(stage, out, whole(stage))


@pytest.mark.full
@pytest.mark.fault("P12", "best_of_n")
def test_a_single_completion_that_does_not_fit_stops(out):
    plant = partial(rows_that_do_not_fit, cpu_allocator, 0)
    stopped(truing("best_of_n", out, plant=[plant]), 6, "while one completion is drawn")


def a_small_machine():
    """A limit on this process's memory, under which only small micro-batches fit: every forward
    pass needs as much again as its tokens would at a large model."""
    from truing.training.step import Step

    backward, each = Step._backward, 16 << 20
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + (1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

    def then(self, batch):
        try:
            needed = torch.empty(batch.size_T * each, dtype=torch.uint8)
        except RuntimeError:
            fire()
            raise
        del needed
        return backward(self, batch)

    Step._backward = then


@pytest.mark.full
@pytest.mark.fault("P12")
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_under_a_real_limit(stage, out, gentle):
    succeeded(truing(stage, out, *GENTLE, plant=[a_small_machine]))
    close(stage, out, gentle(stage))
    assert facts(stage, out)["memory_halved"] > 0


def touched(part, step):
    """Something writes into a network that is only read, after so many steps."""
    from truing.training import build
    from truing.training.step import Step

    networks, call, roles = build.networks, Step.__call__, []

    def made(*args):
        found = networks(*args)
        roles.append(found[0])
        return found

    def then(self, *args):
        metrics = call(self, *args)
        if self.taken == step:
            fire()
            network = getattr(roles[0], part)
            frozen = [p for p in network.parameters() if not p.requires_grad]
            with torch.no_grad():
                frozen[-1].view(-1)[0].add_(1e-3)
        return metrics

    build.networks, Step.__call__ = made, then


LORA = ("--model.lora.rank", "4")
FROZEN = [
    pytest.param("reference_copy", (), "reference", id="reference"),
    pytest.param("policy", LORA, "policy", id="base", marks=pytest.mark.full),
]


@pytest.mark.fault("T6")
@pytest.mark.parametrize(("part", "flags", "name"), FROZEN)
@pytest.mark.parametrize("stage", ["dpo", "ppo", "grpo"])
def test_frozen_weights_that_were_touched_stop_the_run(stage, part, flags, name, out, whole):
    result = truing(stage, out, *flags, plant=[partial(touched, part, 3)])
    stopped(result, 5, f"frozen weights of the {name}", "checkpoint-")
    kept = {path.name for path in stage_folder(stage, out).glob("checkpoint-*")}
    # the check is in the writer's thread: that of step 2 may be under way while step 3 is taken
    assert {"checkpoint-1"} <= kept <= {"checkpoint-1", "checkpoint-2"}
    if not flags:
        succeeded(truing(stage, out, "--resume"))
        same(stage, out, whole(stage))


@pytest.mark.full
@pytest.mark.fault("T6")
@pytest.mark.parametrize("stage", POLICY_GRADIENT)
def test_a_touched_reward_model_is_named(stage, out, gentle):
    model = ("--reward", str(gentle("reward") / "bradley_terry"))
    result = truing(stage, out, *model, plant=[partial(touched, "reward_copy", 3)])
    stopped(result, 5, "frozen weights of the reward model")


@pytest.mark.full
@pytest.mark.fault("T6", "dpo")
def test_without_checkpoints_the_end_is_checked(out):
    late = ("--save-steps", "100")
    result = truing("dpo", out, *late, plant=[partial(touched, "reference_copy", 3)])
    stopped(result, 5, "frozen weights of the reference", "at its end")
    assert not [*stage_folder("dpo", out).glob("*.safetensors")]
