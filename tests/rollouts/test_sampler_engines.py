"""Which engine draws, and that every knob of the recipe reaches it."""

from __future__ import annotations

import warnings

import pytest
import torch
from rollouts_sampling import network_of, prompts, settings, texts
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from small_groups import STOP
from truing.config import Sampling
from truing.errors import ModelError
from truing.groups import FinishReason
from truing.models import attention, tiny
from truing.models.network import Network
from truing.rollouts.engines import local, transformers
from truing.rollouts.sampler import sample
from truing.training.on_policy import sampling_settings

ENGINES = {"local": local, "transformers": transformers}


@pytest.fixture(scope="module")
def network():
    return network_of("llama")


@pytest.fixture(scope="module")
def windowed():
    """A model whose tokens see the last 12 only."""
    attention.register()
    config = AutoConfig.for_model(
        "mistral", vocab_size=259, sliding_window=12, **tiny._LLAMA_LIKE, pad_token_id=0
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME)
    return Network(model.eval()).requires_grad_(False)


@pytest.fixture
def used(monkeypatch):
    """Names of the engines that drew."""
    names = []
    for name, module in ENGINES.items():

        def noted(*given, _name=name, _draw=module.draw, **more):
            names.append(_name)
            return _draw(*given, **more)

        monkeypatch.setattr(module, "draw", noted)
    return names


def test_a_model_with_a_window_is_drawn_from_with_transformers_and_a_note(windowed, used):
    given = prompts(3)
    with pytest.warns(UserWarning, match=r"transformers' generate, which is slower: mistral"):
        drawn = sample(windowed, given, settings(20, temperature=0.0))
    assert used == ["transformers"]
    for prompt, group in zip(given, drawn, strict=True):
        ids = torch.tensor([[*prompt.prompt_ids, *group.completions[0].ids]])
        logits = windowed.base(ids).logits[0]
        begin = len(prompt.prompt_ids) - 1
        assert logits[begin:-1].argmax(-1).tolist() == list(group.completions[0].ids)


def test_within_its_window_the_same_model_needs_no_note(windowed, used):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(windowed, prompts(3), settings(3))
    assert used == ["local"]


def test_the_local_engine_refuses_what_it_cannot_draw_from(windowed):
    with pytest.raises(ModelError, match="mistral does not attend to all of so long a text"):
        sample(windowed, prompts(3), settings(20, engine="local"))


@pytest.mark.parametrize(("name", "expected"), [("auto", "local"), *[(n, n) for n in ENGINES]])
def test_the_engine_asked_for_draws(network, used, name, expected):
    how = sampling_settings(Sampling(max_completion_length=2, engine=name), STOP)
    sample(network, prompts(2), how)
    assert used == [expected]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("knob", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_each_truncation_of_the_recipe_can_leave_the_likeliest_token_only(network, engine, knob):
    def drawn(**knobs):
        sampling = Sampling(max_completion_length=8, engine=engine, **knobs)
        return texts(sample(network, prompts(3), sampling_settings(sampling, STOP), seed=3))

    assert drawn(**knob) == drawn(temperature=0.0) != drawn()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stop_sequence_ends_a_completion_behind_the_token_that_completes_it(network, engine):
    """Byte tokens: a sequence of two characters is two tokens, in the midst of the text."""
    decode = tiny.byte_tokenizer().decode

    def drawn(**knobs):
        sampling = Sampling(max_completion_length=30, engine=engine, **knobs)
        how = sampling_settings(sampling, STOP, decode)
        return sample(network, prompts(4), how, completions=2, seed=3)

    free = [completion.ids for group in drawn() for completion in group.completions]
    begin = next(
        place
        for place in range(4, 29)
        if len(pair := decode(free[0][place : place + 2])) == 2
        and pair.isascii()
        and pair not in decode(free[0][: place + 1])
    )
    stop = decode(free[0][begin : begin + 2])
    cut = [c for group in drawn(stop=["never drawn at all", stop]) for c in group.completions]
    assert cut[0].ids == free[0][: begin + 2]
    assert len(cut[0].sampled_logps) == begin + 2
    for whole, completion in zip(free, cut, strict=True):
        assert completion.ids == whole[: len(completion.ids)]
        if stop in decode(whole):
            assert completion.finish is FinishReason.STOP
            assert stop in decode(completion.ids)
            assert stop not in decode(completion.ids[:-1])
        else:
            assert completion.ids == whole


@pytest.mark.parametrize("engine", ENGINES)
def test_the_models_own_generation_defaults_change_nothing(engine, network):
    """A repetition penalty or another stop token in generation_config.json is for chatting."""
    asked = prompts(3)
    expected = texts(ENGINES[engine].draw(network, asked, settings(), completions=2, seed=4))
    own = network.base.generation_config
    odd = expected[0][0][0]  # a token that is drawn first and then goes on
    network.base.generation_config = GenerationConfig(
        repetition_penalty=5.0, eos_token_id=[STOP, odd], min_length=30, suppress_tokens=[odd]
    )
    try:
        drawn = ENGINES[engine].draw(network, asked, settings(), completions=2, seed=4)
        assert network.base.generation_config.repetition_penalty == 5.0
    finally:
        network.base.generation_config = own
    assert texts(drawn) == expected


def test_no_prompts_are_no_completions(network):
    for name in ENGINES:
        assert sample(network, [], settings(engine=name), seed=1) == []
