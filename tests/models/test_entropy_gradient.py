"""The gradient of the entropy through chunked log-probs: against slopes and the full softmax.

H(π) = −Σ_v π_v log π_v,  π = softmax(h Wᵀ / T)          ∂H/∂logit_v = −π_v (log π_v + H) / T
"""

from __future__ import annotations

import math

import pytest
import torch

from truing.models import logprobs
from truing.models.logprobs import token_statistics

TOKENS, WIDTH, VOCABULARY = 5, 4, 11
TILES = {"one column": 1, "three columns": 3, "all but one": 10, "whole": 11}
tiles = pytest.mark.parametrize("columns", TILES.values(), ids=TILES.keys())
temperatures = pytest.mark.parametrize("temperature", [1.0, 0.6, 2.5])


def case(seed=0):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, WIDTH, generator=draw, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, WIDTH, generator=draw, dtype=torch.float64)
    target = torch.tensor([0, 10, 3, 3, 7])
    return hidden.requires_grad_(), weight.requires_grad_(), target


def cut(monkeypatch, columns):
    monkeypatch.setitem(logprobs.TILE_LOGITS, "cpu", columns * TOKENS)


MIXTURES = {"entropy alone": (0.0, 1.0), "both": (0.7, -1.3), "log-prob alone": (1.0, 0.0)}


def weighed(logps, entropy, mixture):
    """A sum that reads each token otherwise; what has no weight is not read at all."""
    by_logp, by_entropy = mixture
    each = torch.linspace(-1.0, 2.0, TOKENS, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    if by_logp:
        total = total + by_logp * (each * logps).sum()
    if by_entropy:
        total = total + by_entropy * (each.flip(0) * entropy).sum()
    return total


@tiles
@temperatures
@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES.keys())
def test_it_is_that_of_the_full_softmax(mixture, temperature, columns, monkeypatch):
    cut(monkeypatch, columns)
    hidden, weight, target = case()
    seen = token_statistics(hidden, weight, target, temperature)
    ours = torch.autograd.grad(weighed(seen.logps_N, seen.entropy_N, mixture), [hidden, weight])
    table = torch.log_softmax(hidden @ weight.T / temperature, -1)
    logps, entropy = table[torch.arange(TOKENS), target], -(table.exp() * table).sum(-1)
    torch.testing.assert_close(seen.entropy_N, entropy, rtol=1e-12, atol=1e-12)
    theirs = torch.autograd.grad(weighed(logps, entropy, mixture), [hidden, weight])
    for found, expected in zip(ours, theirs, strict=True):
        assert expected.abs().max() > 1e-2
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def entropy_of(hidden, weight, temperature):
    """In plain floats: the entropy of each token's distribution."""
    found = []
    for state in hidden.tolist():
        logits = [
            sum(h * w for h, w in zip(state, row, strict=True)) / temperature
            for row in weight.tolist()
        ]
        total = math.fsum(math.exp(x) for x in logits)
        chances = [math.exp(x) / total for x in logits]
        found.append(-math.fsum(p * math.log(p) for p in chances))
    return found


@tiles
@temperatures
def test_it_is_the_slope_of_a_plain_sum(temperature, columns, monkeypatch):
    cut(monkeypatch, columns)
    hidden, weight, target = case(seed=1)
    entropy = token_statistics(hidden, weight, target, temperature).entropy_N
    assert entropy.tolist() == pytest.approx(entropy_of(hidden, weight, temperature), abs=1e-12)
    ours = torch.autograd.grad(entropy.sum(), [hidden, weight])
    for place, gradient in zip((hidden, weight), ours, strict=True):
        for index in [(0, 0), (2, 3), (4, 1)]:
            step = torch.zeros_like(place)
            step[index] = 1e-5
            ends = []
            for side in (1, -1):
                moved = [(x + side * step if x is place else x).detach() for x in (hidden, weight)]
                ends.append(math.fsum(entropy_of(*moved, temperature)))
            assert gradient[index].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-8)


def test_a_step_along_it_opens_choices():
    hidden, weight, target = case()
    before = token_statistics(hidden, weight, target, 0.7).entropy_N.sum()
    (gradient,) = torch.autograd.grad(before, [weight])
    after = token_statistics(hidden, weight + 1e-3 * gradient, target, 0.7).entropy_N.sum()
    assert after > before
    even = torch.zeros_like(weight, requires_grad=True)  # nothing is more open than even chances
    highest = token_statistics(hidden.detach(), even, target, 0.7).entropy_N
    assert highest.tolist() == pytest.approx([math.log(VOCABULARY)] * TOKENS)
    (flat,) = torch.autograd.grad(highest.sum(), [even])
    assert flat.abs().max() < 1e-12


def test_with_a_frozen_head_it_reaches_the_states():
    hidden, weight, target = case()
    seen = token_statistics(hidden, weight.detach(), target, 0.7)
    (alone,) = torch.autograd.grad(seen.entropy_N.sum(), [hidden])
    both = token_statistics(hidden, weight, target, 0.7).entropy_N.sum()
    torch.testing.assert_close(alone, torch.autograd.grad(both, [hidden])[0], rtol=0, atol=0)


def test_bfloat16_states_get_the_gradient_of_float32():
    hidden, weight, target = (x.detach() for x in case())
    low = [x.bfloat16().requires_grad_() for x in (hidden, weight)]
    high = [x.detach().double().requires_grad_() for x in low]
    gradients = [
        torch.autograd.grad(token_statistics(*pair, target, 0.7).entropy_N.sum(), pair)
        for pair in (low, high)
    ]
    for ours, exact in zip(*gradients, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.double(), exact, rtol=2e-2, atol=2e-2)
