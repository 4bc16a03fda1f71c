"""The choice of a token: truncation as transformers has it, and exact shares of the noise."""

from __future__ import annotations

import pytest
import torch
from rollouts_sampling import settings
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from truing.rollouts.choosing import CHUNK, Chooser

DRAWS = 4000
WARPERS = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}


def shares(logits_V, **how):
    """How much of the noise falls on each token, and what its log-prob is said to be."""
    weight = torch.zeros(len(logits_V), 1)
    choose = Chooser(settings(stop=-1, **how), weight, DRAWS)
    uniform = (torch.arange(DRAWS) + 0.5) / DRAWS
    ids, logps = choose.from_logits(logits_V.expand(DRAWS, -1), uniform)
    counted = torch.bincount(ids, minlength=len(logits_V)) / DRAWS
    said = torch.full_like(logits_V, torch.nan).index_put((ids,), logps)
    return counted, said


@pytest.mark.parametrize("size", [40, CHUNK, 3 * CHUNK - 5])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"top_k": 7, "top_p": 0.8},
        {"top_k": 9, "top_p": 0.9, "min_p": 0.3},
        {"top_k": 10_000, "top_p": 0.3},
    ],
)
def test_shares_of_the_noise_are_the_truncated_probabilities(size, how):
    logits = 2 * torch.randn(size, generator=torch.Generator().manual_seed(size))
    expected = logits[None] / 0.8
    for name, value in how.items():
        value = min(value, size) if name == "top_k" else value
        expected = WARPERS[name](value)(None, expected)
    counted, said = shares(logits, temperature=0.8, **how)
    probs = torch.softmax(expected[0], -1)
    assert (counted - probs).abs().max() <= 1.5 / DRAWS
    assert not counted[probs == 0].any()
    drawn = ~said.isnan()
    whole = torch.log_softmax(logits / 0.8, -1)
    torch.testing.assert_close(said[drawn], whole[drawn], rtol=0, atol=1e-5)


@pytest.mark.parametrize("how", [{}, {"top_p": 0.9999}, {"min_p": 1e-9}])
def test_the_ends_of_the_noise_fall_on_tokens_that_can_be(how):
    """Tokens of probability 0 stand at both ends of the vocabulary; sums of many numbers round."""
    rows, impossible = 1000, 7
    logits = torch.randn(2 * rows, 2 * CHUNK - 3, generator=torch.Generator().manual_seed(4))
    logits[:, :impossible] = logits[:, -impossible:] = -torch.inf
    choose = Chooser(settings(temperature=1.0, **how), torch.zeros(logits.shape[1], 1), 2 * rows)
    ids, logps = choose.from_logits(logits, torch.tensor([0.0, 1 - 2**-24]).repeat(rows))
    assert ids.min() >= impossible
    assert ids.max() < logits.shape[1] - impossible
    assert logps.isfinite().all()


def test_greedy_takes_the_likeliest_and_says_its_log_prob_at_temperature_1():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    choose = Chooser(settings(temperature=0.0), torch.zeros(50, 1), 3)
    ids, logps = choose.from_logits(logits, torch.rand(3))
    assert ids.tolist() == logits.argmax(-1).tolist()
    torch.testing.assert_close(logps, torch.log_softmax(logits, -1).amax(-1))


def test_a_state_is_drawn_from_as_its_logits_are():
    weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(2))
    hidden = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))
    choose, uniform = Chooser(settings(temperature=1.0), weight, 6), torch.rand(4)
    ids, logps = choose(hidden, uniform)
    same_ids, same_logps = choose.from_logits(hidden @ weight.T, uniform)
    assert ids.tolist() == same_ids.tolist()
    torch.testing.assert_close(logps, same_logps)
