"""Numbers that are none, means over nothing, identities that do not hold, other micro-batches."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from harness import (
    GENTLE,
    METHODS,
    close,
    facts,
    fire,
    lines,
    same,
    stage_folder,
    stopped,
    succeeded,
    truing,
)
from safetensors.torch import load_file

from faults.matrix import EVERY, POLICY_GRADIENT, TRAINED
from truing.models.tiny import random_model

CLOSE = 1e-6


def poison(what, value, step):
    """Loss or gradient of one optimizer step is not finite."""
    from truing.training.step import Step

    backward = Step._backward

    def then(self, batch):
        if self.taken + 1 != step:
            return backward(self, batch)
        fire()
        if what == "gradient":
            loss = backward(self, batch)
            next(iter(self.masters.masters.values())).grad.view(-1)[0] = value
            return loss
        compute = self.objective.__class__.__call__

        def broken(objective, batch, outputs):
            loss = compute(objective, batch, outputs)
            wrong = {
                name: metric._replace(total=metric.total * value) if name == "loss" else metric
                for name, metric in loss.metrics.items()
            }
            return loss._replace(total=loss.total * value, metrics=wrong)

        self.objective.__class__.__call__ = broken
        try:
            return backward(self, batch)
        finally:
            self.objective.__class__.__call__ = compute

    Step._backward = then


VARIANTS = [
    pytest.param("loss", float("nan"), id="loss-nan"),
    pytest.param("loss", float("inf"), id="loss-inf", marks=pytest.mark.full),
    pytest.param("gradient", float("nan"), id="gradient-nan", marks=pytest.mark.full),
    pytest.param("gradient", float("inf"), id="gradient-inf", marks=pytest.mark.full),
]


def kept_weights(stage, out):
    """Every floating tensor of every checkpoint and of the stage's own folder."""
    for file in stage_folder(stage, out).rglob("*.safetensors"):
        for name, tensor in load_file(file).items():
            if tensor.is_floating_point():
                yield f"{file}: {name}", tensor


@pytest.mark.fault("N1")
@pytest.mark.parametrize(("what", "value"), VARIANTS)
@pytest.mark.parametrize("stage", TRAINED)
def test_not_finite_stops_before_the_update(stage, what, value, out, whole):
    name = "loss" if what == "loss" else "grad_norm"
    plant = partial(poison, what, value, 3)
    stopped(truing(stage, out, plant=[plant]), 5, f"{name} is ", str(value), "step 3")
    assert lines(stage, out)[-1]["step"] == 2
    found = list(kept_weights(stage, out))
    assert found
    assert all(tensor.isfinite().all() for _, tensor in found)
    succeeded(truing(stage, out, "--resume"))
    same(stage, out, whole(stage))


@pytest.mark.full
@pytest.mark.fault("N1")
@pytest.mark.parametrize("stage", TRAINED)
def test_not_finite_is_skipped_and_declared_within_the_budget(stage, out):
    plants = [
        partial(poison, "loss", float("nan"), 3),
        partial(poison, "gradient", float("inf"), 5),
    ]
    budget = ("--max-nonfinite-steps", "2")
    result = succeeded(truing(stage, out, *budget, plant=plants))
    assert "2 steps were skipped" in result.said
    skipped = facts(stage, out)["skipped_steps"]
    assert [step["step"] for step in skipped] == [3, 5]
    assert "loss is nan" in skipped[0]["why"]
    if stage in ("sft", "reward", "dpo"):
        assert all("rows.jsonl:" in row for row in skipped[0]["rows"])
        assert skipped[0]["rows"]
    by_step = {line["step"]: line for line in lines(stage, out)}
    assert by_step[3]["skipped_steps"] == 1
    assert "loss" not in by_step[3]
    assert by_step[5]["skipped_steps"] == 2
    assert all(tensor.isfinite().all() for _, tensor in kept_weights(stage, out))


@pytest.mark.full
@pytest.mark.fault("N1")
@pytest.mark.parametrize("stage", TRAINED)
def test_one_more_than_the_budget_stops(stage, out):
    plants = [partial(poison, "loss", float("nan"), step) for step in (2, 4)]
    result = truing(stage, out, "--max-nonfinite-steps", "1", plant=plants)
    stopped(result, 5, "loss is nan", "step 4", "after 1 steps that were skipped")


def reward_of_nan():
    """The reward model says NaN of one completion."""
    from truing.models.roles import Roles

    scores = Roles.reward_scores

    def then(self, batch):
        fire()
        found = scores(self, batch).clone()
        found[0] = float("nan")
        return found

    Roles.reward_scores = then


@pytest.mark.full
@pytest.mark.fault("N1")
@pytest.mark.parametrize("stage", POLICY_GRADIENT)
def test_a_reward_model_of_nan_stops(stage, out, gentle):
    model = gentle("reward") / METHODS["reward"]
    result = truing(stage, out, "--reward", str(model), plant=[reward_of_nan])
    stopped(result, 5, "objective/scores", "no finite number")


def without_units(step, parts):
    """Of one step, the first micro-batch (or all of them) holds nothing that is averaged over."""
    from truing.training.step import Step

    gradients = Step._gradients

    def then(self, batches):
        if self.taken + 1 != step:
            return gradients(self, batches)
        fire()
        compute = self.objective.__class__.__call__
        seen = []

        def empty(objective, batch, outputs):
            loss = compute(objective, batch, outputs)
            seen.append(batch)
            if parts == "all" or len(seen) == 1:
                return loss._replace(total=loss.total * 0, weight=0.0, metrics={})
            return loss

        self.objective.__class__.__call__ = empty
        try:
            return gradients(self, batches)
        finally:
            self.objective.__class__.__call__ = compute

    Step._gradients = then


@pytest.mark.fault("N3")
@pytest.mark.parametrize("stage", TRAINED)
def test_nothing_to_average_over_is_skipped_and_declared(stage, out):
    result = succeeded(truing(stage, out, plant=[partial(without_units, 4, "all")]))
    assert "1 steps were skipped" in result.said
    (skipped,) = facts(stage, out)["skipped_steps"]
    assert skipped["step"] == 4
    assert skipped["why"] == "nothing to average over"
    by_step = {line["step"]: line for line in lines(stage, out)}
    assert "loss" not in by_step[4]  # and so it is not 0
    assert by_step[4]["skipped_steps"] == 1
    assert "loss" in by_step[5]


@pytest.mark.full
@pytest.mark.fault("N3")
@pytest.mark.parametrize("stage", TRAINED)
def test_an_empty_micro_batch_weighs_nothing(stage, out):
    """One group a micro-batch, the first of them empty: the mean is over the others."""
    small = ("--micro-batch-tokens", "1")
    result = truing(stage, out, *small, plant=[partial(without_units, 4, "first")])
    succeeded(result)
    assert "skipped_steps" not in facts(stage, out)
    assert all("loss" in line for line in lines(stage, out))
    assert all(tensor.isfinite().all() for _, tensor in kept_weights(stage, out))


def uninitialised_memory_is_nan():
    """Whatever is allocated and not written: slots of keys and values, padding, output buffers."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    fire()


def padding_points_elsewhere():
    """Padded slots of an attention block point at another token than the first."""
    from truing.models import shared_prompts

    block = shared_prompts._block

    def then(together, device):
        found = block(together, device)
        numbers = torch.tensor(together, device=device)
        last = int((numbers[:, 2] + numbers[:, 3] + numbers[:, 4]).max()) - 1
        keys = (numbers[:, 1] + numbers[:, 3] + numbers[:, 4])[:, None]
        padded_BK = torch.arange(found.key_BK.shape[1])[None] >= keys
        if found.padding_BQ is None and not padded_BK.any():
            return found
        fire()
        query_BQ = found.query_BQ
        if found.padding_BQ is not None:
            query_BQ = query_BQ.masked_fill(found.padding_BQ, last)
        return found._replace(key_BK=found.key_BK.masked_fill(padded_BK, last), query_BQ=query_BQ)

    shared_prompts._block = then


@pytest.mark.fault("N2")
@pytest.mark.parametrize("stage", EVERY)
def test_memory_that_nobody_wrote_is_not_read(stage, out, whole):
    succeeded(truing(stage, out, plant=[uninitialised_memory_is_nan]))
    same(stage, out, whole(stage))


@pytest.mark.full
@pytest.mark.fault("N2")
@pytest.mark.parametrize("stage", TRAINED)
def test_padding_of_attention_is_not_read(stage, out, whole):
    succeeded(truing(stage, out, plant=[padding_points_elsewhere]))
    same(stage, out, whole(stage))


def dropout():
    """The network is left in training mode, with dropout behind its embedding."""
    from truing.training import build

    networks = build.networks

    def then(*args):
        roles, lora = networks(*args)
        embedding = roles.policy.base.get_input_embeddings()
        embedding.register_forward_hook(lambda m, i, o: torch.nn.functional.dropout(o, 0.1))
        fire()
        return roles, lora

    build.networks = then


def drifted_reference():
    """The reference is not the weights that training begins with."""
    from truing.training import build

    networks = build.networks

    def then(*args):
        roles, lora = networks(*args)
        with torch.no_grad():
            for parameter in roles.reference_copy.parameters():
                parameter.mul_(1.01)
        fire()
        return roles, lora

    build.networks = then


def adapter_that_is_not_silent():
    """The new adapter begins as another than the reference: its B is not 0."""
    from truing.training import build

    networks = build.networks

    def then(*args):
        roles, lora = networks(*args)
        with torch.no_grad():
            for name, parameter in roles.policy.named_parameters():
                if ".lora_B." in name:
                    parameter.add_(0.05)
                    fire()
        return roles, lora

    build.networks = then


def a_neighbours_token():
    """The last token is taken from the end of the batch: right only for its last completion."""
    from truing.models import network

    def last(batch):
        fire()
        return batch.target_N[batch.last_C.new_full((batch.size_C,), batch.size_N - 1)]

    network._last_tokens = last


LORA = ("--model.lora.rank", "4")
BROKEN = [
    *[pytest.param(stage, dropout, (), id=f"{stage}-dropout") for stage in TRAINED[1:]],
    *[
        pytest.param(stage, plant, flags, id=f"{stage}-{name}", marks=pytest.mark.full)
        for stage in TRAINED[2:]
        for name, plant, flags in (
            ("drifted", drifted_reference, ()),
            ("adapter", adapter_that_is_not_silent, LORA),
            ("dropout-lora", dropout, LORA),
        )
    ],
    pytest.param("reward", a_neighbours_token, (), id="reward-token", marks=pytest.mark.full),
]


@pytest.mark.fault("N4")
@pytest.mark.parametrize(("stage", "plant", "flags"), BROKEN)
def test_a_broken_identity_stops_before_the_first_update(stage, plant, flags, out):
    result = stopped(truing(stage, out, *flags, plant=[plant]), 5, METHODS.get(stage, stage))
    assert "step 0" in result.said or "rollout 1" in result.said
    assert not [*stage_folder(stage, out).glob("checkpoint-*")]


@pytest.mark.fault("N5")
@pytest.mark.parametrize(
    "tokens", ["1", pytest.param("60", marks=pytest.mark.full)], ids=["1-each", "some"]
)
@pytest.mark.parametrize("stage", TRAINED)
def test_other_micro_batches_are_the_same_step(stage, tokens, out, gentle):
    succeeded(truing(stage, out, *GENTLE, "--micro-batch-tokens", tokens))
    close(stage, out, gentle(stage))
    begun = random_model("llama", torch.float32, "eager").state_dict()
    (file,) = stage_folder(stage, out).glob("*.safetensors")
    moved = [float((t - begun[n]).abs().max()) for n, t in load_file(file).items() if n in begun]
    assert max(moved) > 10 * CLOSE  # else it would show nothing
