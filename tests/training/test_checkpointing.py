"""Gradient checkpointing changes memory and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from test_step import LORAS, built
from torch import nn

from small_groups import random_groups
from truing.config import Model
from truing.data.packing import pack
from truing.errors import ModelError
from truing.models import loading, tiny
from truing.models.checkpointing import checkpoint_layers
from truing.models.forward import hidden_states, unshared_hidden_states
from truing.models.network import Network
from truing.training.networks import lora_config


def networks(architecture, lora):
    """The same network in float64 twice, the second with checkpointing."""
    model = loading.load_causal(f"random:{architecture}", torch.float64)
    plain = Network(model, lora=lora_config(Model(path="random", lora=lora), model))
    plain.trainable("policy")
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "lora_B" in name:  # zero at first: then nothing reaches lora_A
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    saving = copy.deepcopy(plain)
    checkpoint_layers(saving.trunk)
    return plain, saving


def measured(network, batch, states):
    """Loss, gradients, and the bytes that wait for the backward pass."""
    with torch.profiler.profile(profile_memory=True) as memory:
        loss = states(network.trunk, batch).square().mean()
    waiting = sum(event.self_cpu_memory_usage for event in memory.key_averages())
    loss.backward()
    gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    return loss, gradients, waiting


@pytest.mark.parametrize("states", [hidden_states, unshared_hidden_states])
@pytest.mark.parametrize("lora", LORAS)
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_loss_and_gradients_are_the_same_and_less_is_kept(architecture, lora, states):
    batch = pack(random_groups(5, 6, 2))
    plain, saving = networks(architecture, LORAS[lora])
    loss, gradients, kept = measured(plain, batch, states)
    same_loss, same, less = measured(saving, batch, states)
    assert torch.equal(loss, same_loss)
    assert same.keys() == gradients.keys()
    assert gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-12, atol=1e-12)
    assert less < kept / 3


def test_sampling_and_measuring_go_straight_through(monkeypatch):
    from truing.models import checkpointing

    calls = []
    honest = checkpointing.checkpoint
    monkeypatch.setattr(
        checkpointing, "checkpoint", lambda *a, **k: (calls.append(1), honest(*a, **k))[1]
    )
    stage = built("ppo", gradient_checkpointing=True)
    work = next(iter(stage.source))
    assert calls == []
    stage.step(work.micro_batches, work.metrics)
    assert len(calls) == tiny.LAYERS * len(work.micro_batches)
    assert not any(module.training for module in stage.roles.policy.trunk.modules())


@pytest.mark.parametrize("lora", LORAS)
@pytest.mark.parametrize("method", ["dpo", "bradley_terry"])
def test_a_run_with_it_takes_the_same_steps(method, lora):
    after = []
    for on in (False, True):
        torch.manual_seed(0)
        stage = built(method, LORAS[lora], num_train_epochs=2, gradient_checkpointing=on)
        metrics = [stage.step(work.micro_batches, work.metrics) for work in stage.source]
        after.append((metrics, stage.step.masters.masters))
    (plain, weights), (saving, same) = after
    assert saving == [pytest.approx(line, rel=1e-6, abs=1e-7) for line in plain]
    for name, weight in weights.items():
        torch.testing.assert_close(same[name], weight, rtol=1e-6, atol=1e-7)


def test_a_model_without_marked_layers_is_refused():
    with pytest.raises(ModelError, match="cannot be told apart"):
        checkpoint_layers(nn.Sequential(nn.Linear(2, 2)))
