"""Chunked log-probs equal plain log-softmax, value and gradient, at any temperature."""

from __future__ import annotations

import pytest
import torch

from truing.models import logprobs
from truing.models.logprobs import token_statistics


def case(tokens, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 6, generator=generator, dtype=dtype)
    weight = torch.randn(11, 6, generator=generator, dtype=dtype)
    target = torch.randint(0, 11, (tokens,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), target


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("tokens", [1, 4, 5, 13])
def test_equals_log_softmax(tokens, temperature, monkeypatch):
    monkeypatch.setitem(logprobs.TILE_LOGITS, "cpu", 4 * tokens)
    hidden, weight, target = case(tokens)
    weights = torch.linspace(-1, 2, tokens, dtype=torch.float64)
    found, entropy, _ = token_statistics(hidden, weight, target, temperature)
    grads = torch.autograd.grad((found * weights).sum(), [hidden, weight])
    table = torch.log_softmax(hidden @ weight.T / temperature, -1)
    expected = table.gather(1, target[:, None])[:, 0]
    expected_grads = torch.autograd.grad((expected * weights).sum(), [hidden, weight])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropy, -(table.exp() * table).sum(-1), rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("tokens", [0, 1, 4, 13])
def test_collision_is_the_log_of_the_summed_squares(tokens, temperature, monkeypatch):
    monkeypatch.setitem(logprobs.TILE_LOGITS, "cpu", 4 * tokens)
    hidden, weight, target = case(tokens)
    probs = torch.softmax(hidden @ weight.T / temperature, -1)
    plain = token_statistics(hidden, weight, target, temperature)
    asked = token_statistics(hidden, weight, target, temperature, collision=True)
    assert plain.collision_N is None
    assert not asked.collision_N.requires_grad
    expected = (probs**2).sum(-1).log().detach()
    torch.testing.assert_close(asked.collision_N.double(), expected, rtol=1e-12, atol=1e-12)
    # and asking for it changes nothing else
    torch.testing.assert_close(asked.logps_N, plain.logps_N, rtol=0, atol=0)
    if tokens:
        ours, theirs = (
            torch.autograd.grad(found.logps_N.sum(), [hidden, weight]) for found in (asked, plain)
        )
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_collision_of_a_sure_model_is_finite():
    """Σ π² of all but one token underflows in float32; its log-sum does not."""
    hidden = torch.tensor([[1.0, 0.0], [1000.0, 0.0], [0.0, 0.0]])
    weight = torch.tensor([[0.0, 1.0], [200.0, 0.0], [-200.0, 0.0]])
    found = token_statistics(hidden, weight, torch.tensor([0, 0, 0]), collision=True)
    uniform = -torch.log(torch.tensor(3.0))
    torch.testing.assert_close(found.collision_N, torch.tensor([0.0, 0.0, uniform]))


def test_bfloat16_reduces_in_float32():
    """The normaliser of thousands of bfloat16 logits must not be summed in bfloat16."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(8, 16, generator=generator).bfloat16()
    weight = torch.randn(5000, 16, generator=generator).bfloat16()
    target = torch.arange(8)
    found, *_ = token_statistics(hidden, weight, target)
    logits = torch.nn.functional.linear(hidden, weight).double()
    expected = torch.log_softmax(logits, -1).gather(1, target[:, None])[:, 0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_frozen_head_gets_no_gradient_and_no_tokens_are_fine():
    hidden, weight, target = case(3)
    logps, *_ = token_statistics(hidden, weight.detach(), target)
    logps.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
    empty, *_ = token_statistics(hidden[:0], weight, target[:0])
    assert empty.shape == (0,)
