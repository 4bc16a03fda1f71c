"""Reward models of another vocabulary: the same scores standalone and in any batch."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import processors
from transformers import AutoModelForSequenceClassification, GPT2ForSequenceClassification

from foreign_judges import TEMPLATE, other_tokenizer, saved, standalone
from truing import rewards
from truing.errors import ModelError, UnsafeFileError
from truing.models.tiny import byte_tokenizer, random_model
from truing.rewards.base import score
from truing.rewards.model import Model
from truing.rollouts.learned_reward import LearnedReward, reads_ids_of

TEXTS = ["fine", "", "a much longer answer, with a café in it: " + "ha" * 20, "ok <eos> no"]


@pytest.fixture
def folder(tmp_path):
    """Makes the folder of a classifier with its tokenizer."""

    def make(kind="gpt2", name="judge", tokenizer=None, **fields):
        return saved(tmp_path / name, kind, tokenizer, **fields)

    return make


def by_hand(folder, rows):
    """The scores of rows of ids, each alone, without padding and without our pooling."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        if not hasattr(model, "score"):
            return [model(torch.tensor([ids])).logits.item() for ids in rows]
        return [
            model.score(model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]).item()
            for ids in rows
        ]


def close(found, expected):
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-5)


def ask(folder, prompts, completions, talks=None, **fields):
    reward = LearnedReward(Model(path=str(folder), **fields))
    columns = {} if talks is None else {"prompt_messages": talks}
    return score(reward, prompts, completions, columns).values


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_plain_texts_score_as_in_transformers_pipeline(folder, kind):
    made = folder(kind, tokenizer=other_tokenizer(template=None, pad="<pad>"))
    texts = TEXTS[:3]
    found = ask(made, ["Well: "] * 3, texts)
    close(found, standalone(made, ["Well: " + text for text in texts]))
    assert len(set(found)) == 3


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_a_score_does_not_depend_on_its_batch(folder, kind):
    made = folder(kind)
    prompts = ["Well: "] * len(TEXTS)
    together = ask(made, prompts, TEXTS)
    alone = [ask(made, ["Well: "], [text])[0] for text in TEXTS]
    close(together, alone)
    close(ask(made, prompts, TEXTS[::-1])[::-1], alone)
    close(ask(made, prompts, TEXTS, batch_tokens=1), alone)


def test_a_conversation_goes_through_the_models_own_template(folder):
    made = folder("llama")
    talk = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "Well?"}]
    found = ask(made, ["shown to people"] * 3, TEXTS[:3], [talk] * 3)
    tokenizer = other_tokenizer()
    texts = [f"<bos>[system] be kind<eos>[user] Well?<eos>[assistant] {t}<eos>" for t in TEXTS[:3]]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert all(ids.count(0) == 1 for ids in rows)  # one BOS
    close(found, by_hand(made, rows))  # at the <eos>, which is the padding token as well


def test_an_answer_that_was_begun_is_one_turn(folder):
    talk = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "I am "}]
    made = folder("llama")
    whole = [{"role": "user", "content": "Well?"}]
    close(ask(made, [""], ["fine"], [talk]), ask(made, [""], ["I am fine"], [whole]))


def test_control_tokens_in_a_text_are_text(folder):
    made = folder("llama")
    reward = LearnedReward(Model(path=str(made)))
    talk = [{"role": "user", "content": "Well?"}]
    eos, bos = 1, 0
    assert reward.ids("Well?", "no <eos><bos> yes", talk).count(eos) == 2
    assert reward.ids("Well?", "no <eos><bos> yes", talk).count(bos) == 1
    assert eos not in reward.ids("Well?", "no <eos> yes", None)


def test_each_field_changes_what_is_read(folder):
    made = folder("llama")
    talk = [[{"role": "user", "content": "Well?"}]]
    tokenizer = other_tokenizer()

    def read(text):
        return by_hand(made, [tokenizer(text, add_special_tokens=False)["input_ids"]])

    plain, chat = read("<bos>Well?fine"), read("<bos>[user] Well?<eos>[assistant] fine<eos>")
    close(ask(made, ["Well?"], ["fine"]), plain)
    close(ask(made, ["Well?"], ["fine"], talk), chat)
    close(ask(made, ["Well?"], ["fine"], template="chat"), chat)
    close(ask(made, ["Well?"], ["fine"], talk, template="plain"), plain)
    close(ask(made, ["Well?"], ["fine"], append_eos=True), read("<bos>Well?fine<eos>"))
    without = folder("llama", "without", tokenizer=other_tokenizer(template=None))
    close(ask(without, ["Well?"], ["fine"], talk), ask(without, ["Well?"], ["fine"]))


def test_a_text_longer_than_the_model_can_read_is_unscored(folder):
    made = folder("gpt2", positions=16)
    found = score(LearnedReward(Model(path=str(made))), ["Well: "] * 2, ["ok", "x" * 20])
    assert found.values[0] is not None
    assert found.values[1] is None
    assert found.faults == {"too_long": 1}


def test_a_tokenizer_may_know_a_smaller_limit_than_the_model(folder):
    """RoBERTa's positions begin behind its padding: of 514 only 512 can be used."""
    made = folder("gpt2", positions=16)
    judge = LearnedReward(Model(path=str(made)))
    texts = ["x" * n for n in (4, 7, 8)]  # and "Well: " of six bytes
    judge.tokenizer.model_max_length = 14
    found = score(judge, ["Well: "] * 3, texts).values
    lengths = [len(judge.ids("Well: ", text, None)) for text in texts]
    assert [value is None for value in found] == [length > 14 for length in lengths]
    assert True in [14 < length <= 16 for length in lengths]
    judge.tokenizer.model_max_length = int(1e30)  # says nothing
    assert judge.longest == 16


def test_a_head_with_a_bias_counts_it(folder):
    made = folder("llama", bias=True)
    bias = load_file(made / "model.safetensors")["score.bias"].item()
    assert abs(bias) > 0.01
    ids = other_tokenizer()("Well?fine")["input_ids"]
    close(ask(made, ["Well?"], ["fine"]), [by_hand(made, [ids])[0] + bias])


def test_nothing_is_loaded_before_it_is_asked(tmp_path):
    reward = LearnedReward(Model(path=str(tmp_path / "comes later")))
    with pytest.raises(ModelError):
        reward(["a"], ["b"])


def test_what_is_no_reward_model_is_refused(folder, tmp_path):
    tokenizer = byte_tokenizer()
    random_model("gpt2", torch.float32, "sdpa").save_pretrained(tmp_path / "causal")
    tokenizer.save_pretrained(tmp_path / "causal")
    with pytest.raises(ModelError, match="it would be random"):
        ask(tmp_path / "causal", ["a"], ["b"])
    many = folder("gpt2", "many")
    model = GPT2ForSequenceClassification.from_pretrained(
        many, num_labels=3, ignore_mismatched_sizes=True
    )
    model.save_pretrained(many)
    with pytest.raises(ModelError, match="one label, this one has 3"):
        ask(many, ["a"], ["b"])
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((many / "config.json").read_text())
    tokenizer.save_pretrained(pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(UnsafeFileError, match="pickled"):
        ask(pickled, ["a"], ["b"])
    refusing = folder("gpt2", "refusing", other_tokenizer(template="{{ raise_exception('no') }}"))
    with pytest.raises(ModelError, match="template refuses"):
        ask(refusing, ["a"], ["b"], [[{"role": "user", "content": "a"}]])


def test_ids_go_straight_only_where_they_mean_the_same(folder):
    ours = byte_tokenizer()
    assert reads_ids_of(folder("gpt2", "same", byte_tokenizer()), ours)
    assert not reads_ids_of(folder("gpt2", "other"), ours)
    assert not reads_ids_of(folder("gpt2", "bias", byte_tokenizer(), bias=True), ours)
    assert not reads_ids_of(folder("bert", "encoder", byte_tokenizer()), ours)
    template, more, begins = byte_tokenizer(), byte_tokenizer(), byte_tokenizer()
    template.chat_template = TEMPLATE
    more.add_tokens(["zebra"])
    begins.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    for name, theirs in {"template": template, "more": more, "begins": begins}.items():
        assert not reads_ids_of(folder("gpt2", name, theirs), ours)


def test_a_model_in_a_spec_is_kept_as_given(folder):
    made = folder("gpt2")
    spec = {"name": "model", "path": str(made), "template": "plain"}
    reward = rewards.make(json.loads(json.dumps(spec)), LearnedReward)
    assert isinstance(reward, LearnedReward)
    assert reward.model == Model(path=str(made), template="plain")
    assert reward.label == str(made)
