"""Sampling: the distribution, the log-probs, the stop, and independence of the batch."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from small_groups import STOP, random_groups
from truing.data.packing import pack
from truing.groups import FinishReason, TokenGroup
from truing.models import loading, tiny
from truing.models.network import Network
from truing.rollouts.sampler import SamplingSettings, sample


def settings(length=6, temperature=0.1, batch_size=8, stop=STOP):
    """Random weights are nearly uniform: a low temperature gives their choices some shape."""
    return SamplingSettings(length, temperature, batch_size, stop)


@pytest.fixture(scope="module", params=list(tiny.ARCHITECTURES))
def network(request):
    model = loading.load_causal(f"random:{request.param}", torch.float32)
    return Network(model).requires_grad_(False)


def prompts(count=5):
    return [TokenGroup(g.prompt_ids) for g in random_groups(11, count, 0)]


def test_greedy_equals_transformers_token_for_token(network):
    for prompt, drawn in zip(
        prompts(), sample(network, prompts(), settings(8, temperature=0.0)), strict=True
    ):
        ids = torch.tensor([prompt.prompt_ids])
        expected = network.base.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=STOP,
            pad_token_id=0,
        )[0, ids.shape[1] :]
        assert list(drawn.completions[0].ids) == expected.tolist()


def test_log_probs_are_the_trainers_at_the_temperature(network):
    drawn = sample(network, prompts(), settings(temperature=0.7), completions=3, seed=4)
    batch = pack(drawn)
    trainer = network(batch, logps=True, temperature=0.7).logps_N
    sampled = [x for g in drawn for c in g.completions for x in c.sampled_logps]
    torch.testing.assert_close(trainer, torch.tensor(sampled), rtol=0, atol=1e-4)


def test_the_text_does_not_depend_on_what_is_drawn_beside_it(network):
    together = sample(network, prompts(), settings(batch_size=64), completions=3, seed=9)
    apart = sample(network, prompts(), settings(batch_size=1), completions=3, seed=9)
    assert [[c.ids for c in g.completions] for g in together] == [
        [c.ids for c in g.completions] for g in apart
    ]
    other = sample(network, prompts(), settings(batch_size=64), completions=3, seed=10)
    assert [c.ids for g in other for c in g.completions] != [
        c.ids for g in together for c in g.completions
    ]


def test_completions_end_at_the_stop_token_or_are_marked_cut(network):
    drawn = sample(network, prompts(), settings(length=5), completions=16, seed=2)
    completions = [c for g in drawn for c in g.completions]
    for completion in completions:
        assert STOP not in completion.ids[:-1]
        stopped = completion.ids[-1] == STOP
        assert completion.finish is (FinishReason.STOP if stopped else FinishReason.LENGTH)
        assert stopped or len(completion.ids) == 5
        assert len(completion.sampled_logps) == len(completion.ids)
    # stopping must happen at all, or this test shows nothing: let every token be the stop token
    first = completions[0].ids[0]
    early = sample(network, prompts(), settings(length=5, stop=first), completions=16, seed=2)
    assert early[0].completions[0].ids == (first,)


def test_first_tokens_follow_the_models_distribution():
    network = Network(loading.load_causal("random:llama", torch.float32)).requires_grad_(False)
    prompt = TokenGroup((5, 6, 7))
    drawn = sample(network, [prompt] * 40, settings(1, batch_size=400), completions=100, seed=1)
    counts = Counter(c.ids[0] for g in drawn for c in g.completions)
    ids = torch.tensor([prompt.prompt_ids])
    probs = torch.softmax(network.base(ids).logits[0, -1] / 0.1, -1)
    assert 0.02 < probs.max() < 0.9  # neither uniform nor certain
    top = probs.topk(5)
    total = counts.total()
    for token, p in zip(top.indices.tolist(), top.values.tolist(), strict=True):
        deviation = (p * (1 - p) / total) ** 0.5
        assert abs(counts[token] / total - p) < 5 * deviation
