"""Models that look like ours and are not: computed right, or refused; never nearly right."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from small_groups import random_groups
from truing.data.packing import pack
from truing.errors import ModelError
from truing.groups import TokenCompletion, TokenGroup
from truing.models import allocator, attention, forward, frozen, fused, loading, tiny
from truing.models.network import LOGIT_TRANSFORMS, Network


class ClampedMLP(LlamaMLP):
    """The same children, and a clamp between them."""

    def forward(self, x):
        gate, up = self.gate_proj(x).clamp(max=7.0), self.up_proj(x).clamp(-7.0, 7.0)
        return self.down_proj(self.act_fn(gate) * up)


class ScaledMLP(LlamaMLP):
    def forward(self, x):
        return 0.5 * super().forward(x)


class ShiftedRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states):
        rate = (hidden_states.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()
        return (1 + self.weight) * hidden_states * rate


@pytest.mark.parametrize("kind", [ClampedMLP, ScaledMLP, ShiftedRMSNorm])
def test_a_module_that_only_looks_alike_keeps_its_own_forward(kind):
    torch.manual_seed(0)
    config = tiny.random_config("llama")
    module = kind(config.hidden_size) if kind is ShiftedRMSNorm else kind(config)
    x = 30 * torch.randn(5, config.hidden_size)
    expected = module(x)
    fused.fuse(module)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=0)
    assert "forward" not in vars(module)


@pytest.mark.parametrize("kind", [LlamaMLP, LlamaRMSNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_modules_it_is_made_for_are_fused(kind, dtype):
    config = tiny.random_config("llama")
    module = kind(config.hidden_size) if kind is LlamaRMSNorm else kind(config)
    module = module.to(dtype)
    fused.fuse(module)
    assert "forward" in vars(module)


class Trunk(nn.Module):
    """Layers that ask our attention as often as they are told."""

    def __init__(self, asks):
        super().__init__()
        self.config = SimpleNamespace(model_type="odd", num_hidden_layers=2)
        self.asks = asks

    def forward(self, input_ids, layout, **_):
        q = torch.zeros(1, 1, input_ids.shape[1], 4)
        for layer in self.asks:
            layout(layer, q, q, q, 1.0)
        return SimpleNamespace(last_hidden_state=q[:, 0])


def test_a_layer_that_does_not_ask_or_asks_twice_is_refused():
    batch = pack(random_groups(1, 2, 2))
    for asks in ([], [0], [0, 0, 1, 1], [1, 0]):
        with pytest.raises(ModelError, match="asked our attention"):
            forward.hidden_states(Trunk(asks), batch)
    assert forward.hidden_states(Trunk([0, 1]), batch).shape == (batch.size_T, 4)
    # layers below the adapters may be left out: the rest is in order and ends with the last
    assert forward.hidden_states(Trunk([1]), batch).shape == (batch.size_T, 4)


def test_a_mask_or_a_bias_of_the_models_own_is_refused():
    q = torch.zeros(1, 1, 3, 4)
    module = SimpleNamespace(layer_idx=0)
    with pytest.raises(ModelError, match="mask of its own"):
        attention.attend(module, q, q, q, torch.zeros(1, 1, 3, 3), layout=lambda *_: q)
    with pytest.raises(ModelError, match="position_bias"):
        attention.attend(module, q, q, q, None, position_bias=torch.zeros(3, 3))


def test_values_of_another_size_than_keys_are_not_shared():
    config = SimpleNamespace(layer_types=None, v_head_dim=32)
    assert not forward.takes_shared_prompts(config, 10)
    assert forward.takes_shared_prompts(SimpleNamespace(layer_types=None), 10)


def test_every_known_logit_transform_is_refused():
    for name in LOGIT_TRANSFORMS:
        model = loading.load_causal("random:llama", torch.float32)
        setattr(model.config, name, 1.0)
        assert Network(model).vocabulary_weight.ndim == 2  # a scale of 1 is none
        setattr(model.config, name, 30.0)
        with pytest.raises(ModelError, match="not one matrix"):
            _ = Network(model).vocabulary_weight


def test_many_copies_of_a_prompt_do_not_wear_its_state_down():
    """In bfloat16 a running sum of 64 equal numbers is off by percents."""
    attention.register()
    config = AutoConfig.for_model(
        "mistral", vocab_size=259, sliding_window=12, **tiny._LLAMA_LIKE, pad_token_id=0
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME)
    trunk = model.to(torch.bfloat16).eval().model
    prompt = tuple(range(20, 40))
    one = pack([TokenGroup(prompt, (TokenCompletion((5, 6)),))])
    many = pack([TokenGroup(prompt, tuple(TokenCompletion((5, 6)) for _ in range(64)))])
    few, states = (forward.hidden_states(trunk, batch) for batch in (one, many))
    torch.testing.assert_close(states[:20], few[:20], rtol=0, atol=0.02)


def test_the_layers_are_found_wherever_the_trunk_keeps_them():
    config = AutoConfig.for_model(
        "opt", vocab_size=259, hidden_size=32, ffn_dim=64, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=64, word_embed_proj_dim=32,
    )  # fmt: skip
    trunk = AutoModelForCausalLM.from_config(config).model
    assert frozen._layers(trunk) is trunk.decoder.layers


def test_an_older_glibc_keeps_what_it_can(monkeypatch):
    asked = []

    def mallopt(name, value):
        asked.append((name, value))
        return int(value <= 2**25 or name != allocator._MMAP_THRESHOLD)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    monkeypatch.setattr("sys.platform", "linux")
    assert allocator.keep_freed_memory.__wrapped__()
    assert (allocator._MMAP_THRESHOLD, 2**25) in asked
    assert {name for name, _ in asked} == {-1, -2, -3}
