"""The fused norm and gate equal transformers' own, in value and gradient, tile by tile."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from truing.models import fused, tiny

EXACT = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""transformers' norm reduces in float32 even for float64."""


def modules(kind, dtype):
    torch.manual_seed(3)
    if kind == "norm":
        plain = LlamaRMSNorm(24, eps=1e-3)
        nn.init.normal_(plain.weight)
    else:
        plain = LlamaMLP(tiny.random_config("llama"))
    plain = plain.to(dtype)
    ours = copy.deepcopy(plain)
    fused.fuse(ours)
    return plain, ours


def judged(module, x):
    """Output and gradients, every number of the output weighted differently."""
    x = x.clone().requires_grad_()
    y = module(x)
    weights = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view(y.shape)
    (y * weights.to(y.dtype)).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("tile", [2**17, 100])
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("kind", ["norm", "gate"])
def test_it_is_what_transformers_computes(kind, dtype, tile, monkeypatch):
    monkeypatch.setattr(fused, "TILE_NUMBERS", tile)
    plain, ours = modules(kind, dtype)
    width = 24 if kind == "norm" else tiny.WIDTH
    x = (3 * torch.randn(2, 7, width)).to(dtype)
    assert type(ours.forward) is not type(plain.forward)
    for seen, expected in zip(judged(ours, x), judged(plain, x), strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(seen, expected, rtol=0, atol=EXACT[dtype] * scale)


@pytest.mark.parametrize("kind", ["norm", "gate"])
def test_its_backward_is_the_derivative(kind):
    _, ours = modules(kind, torch.float64)
    x = torch.randn(3, 24 if kind == "norm" else tiny.WIDTH, dtype=torch.float64)
    assert torch.autograd.gradcheck(ours, (x.requires_grad_(),), atol=1e-6)


def test_a_frozen_weight_gets_no_gradient_and_less_is_kept():
    kept = {}
    for module in modules("norm", torch.bfloat16):
        module.weight.requires_grad_(False)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # noqa: B023
            module(torch.randn(64, 24).bfloat16().requires_grad_()).sum().backward()
        assert module.weight.grad is None
        kept[module.forward.__class__.__name__] = sum(t.nbytes for t in saved)
    assert kept["partial"] < kept["method"] / 2


def test_other_modules_are_left_alone():
    gemma = GemmaRMSNorm(8)
    fused.fuse(gemma)
    assert "forward" not in vars(gemma)
    config = tiny.random_config("llama")
    config.hidden_act = "gelu"
    mlp = LlamaMLP(config)
    fused.fuse(mlp)
    assert "forward" not in vars(mlp)
    gpt2 = AutoModelForCausalLM.from_config(tiny.random_config("gpt2"))
    fused.fuse(gpt2)
    assert not any("forward" in vars(module) for module in gpt2.modules())
