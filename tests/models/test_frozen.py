"""The frozen lower layers are computed once, and nothing can tell."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from small_groups import random_groups
from truing.data.packing import pack
from truing.memory import Memory
from truing.models import frozen, loading, tiny
from truing.models.heads import new_value_head
from truing.models.network import Network
from truing.models.roles import Roles

CPU = torch.device("cpu")


def network(architecture, layers):
    """Adapters on some layers, moved so that they do something."""
    model = loading.load_causal(f"random:{architecture}", torch.float32)
    lora = LoraConfig(
        r=4,
        target_modules="all-linear" if layers is None else LINEAR[architecture],
        layers_to_transform=layers,
        fan_in_fan_out=architecture == "gpt2",
    )
    made = Network(model, lora=lora, value_head=new_value_head(model.config.hidden_size))
    g = torch.Generator().manual_seed(1)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=g)
    made.trainable("policy+value")
    return made


LINEAR = {
    "llama": ["q_proj", "down_proj"],
    "qwen2": ["q_proj", "down_proj"],
    "qwen3": ["q_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
}


def judged(made, batch):
    """Log-probs, values, the reference's log-probs, and what learns from them."""
    outputs = Roles(made).outputs(batch, "policy+value")
    (outputs.logps_N.sum() + outputs.values_N.square().sum()).backward()
    found = [
        outputs.logps_N.detach(),
        outputs.values_N.detach(),
        Roles(made).reference_logps(batch),
    ]
    for parameter in made.parameters():
        if parameter.grad is not None:
            found.append(parameter.grad)
            parameter.grad = None
    return found


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_values_and_gradients_are_those_of_the_whole_model_bit_for_bit(architecture):
    made = network(architecture, layers=[1])
    batch = pack(random_groups(seed=4, groups=5, completions=2))
    placed = Roles(made).placed(batch, CPU, Memory())
    assert placed["frozen_TH"].shape == (batch.size_T, tiny.WIDTH)
    for seen, whole in zip(judged(made, placed), judged(made, batch), strict=True):
        assert torch.equal(seen, whole)
    # and the model is as it was
    again = zip(judged(made, batch), judged(made, placed), strict=True)
    assert all(torch.equal(whole, seen) for whole, seen in again)


def test_lower_layers_that_do_not_fit_at_once_are_computed_in_halves(monkeypatch):
    made = network("llama", layers=[1])
    batch = pack(random_groups(seed=4, groups=5, completions=2))
    whole = Roles(made).placed(batch, CPU, Memory())
    with_frozen = Network.with_frozen

    def small(self, part):
        if part.size_G > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return with_frozen(self, part)

    monkeypatch.setattr(Network, "with_frozen", small)
    memory = Memory([].append)
    placed = Roles(made).placed(batch, CPU, memory)
    torch.testing.assert_close(placed["frozen_TH"], whole["frozen_TH"], rtol=1e-5, atol=1e-6)
    assert placed.size_G == 5
    assert memory.taken() > 1


def test_the_lower_layers_really_do_not_run():
    made = network("llama", layers=[1])
    placed = Roles(made).placed(pack(random_groups(seed=4, groups=2, completions=2)), CPU, Memory())
    ran = []
    for layer in made.trunk.layers:
        layer.self_attn.register_forward_hook(lambda *_: ran.append(1))
    Roles(made).outputs(placed, "policy")
    assert len(ran) == 1


def test_the_upper_layers_do_not_run_while_the_lower_are_computed():
    made = network("llama", layers=[1])
    ran = []
    made.trunk.layers[1].self_attn.register_forward_hook(lambda *_: ran.append(1))
    Roles(made).placed(pack(random_groups(seed=4, groups=2, completions=2)), CPU, Memory())
    assert not ran


def test_adapters_everywhere_or_nowhere_share_nothing():
    batch = pack(random_groups(seed=4, groups=2, completions=2))
    assert "frozen_TH" not in Roles(network("llama", layers=None)).placed(batch, CPU, Memory())
    plain = Network(loading.load_causal("random:llama", torch.float32))
    assert "frozen_TH" not in Roles(plain).placed(batch, CPU, Memory())


def test_any_adapter_on_the_trunk_counts():
    """A reward adapter that reaches lower than the policy's own."""
    made = network("llama", layers=[1])
    assert frozen.frozen_layers(made) == 1
    everywhere = LoraConfig(r=2, target_modules=["q_proj"])
    made.peft.add_adapter("reward", everywhere)
    assert frozen.frozen_layers(made) == 0


def test_another_network_does_not_read_the_states():
    batch = pack(random_groups(seed=4, groups=2, completions=2))
    placed = Roles(network("llama", layers=[1])).placed(batch, CPU, Memory())
    other = Network(loading.load_causal("random:llama", torch.float32))
    with torch.no_grad():
        for parameter in other.trunk.layers[0].parameters():
            parameter.mul_(1.5)
    assert torch.equal(other(placed, logps=True).logps_N, other(batch, logps=True).logps_N)
