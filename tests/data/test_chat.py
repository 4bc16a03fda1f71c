from __future__ import annotations

import pytest
from byte_tokens import make_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from truing.data.chat import ChatTokenizer
from truing.errors import DataError, ModelError
from truing.groups import Completion, FinishReason, Group, Message, Prompt, Step

CHAT = ChatTokenizer(make_tokenizer())
"""For properties: hypothesis wants no fixtures."""
CONTROL = ("<|im_start|>", "<|im_end|>", "<|pad|>")


def talk(*turns: str) -> Prompt:
    """'user: hi' -> a prompt of messages."""
    messages = [Message(*turn.split(": ", 1)) for turn in turns]
    return Prompt("", tuple(messages))


def control_ids(chat: ChatTokenizer) -> set[int]:
    return set(chat.tokenizer.convert_tokens_to_ids(list(CONTROL)))


# The stop token

ENDS_WITH_TURN = "{% for m in messages %}<|im_start|>{{ m.content }}<|turn|>{% endfor %}"
ENDS_WITH_NOTHING = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"


def test_the_stop_token_is_what_the_template_writes_behind_an_answer() -> None:
    assert ChatTokenizer(make_tokenizer()).stop_text == "<|im_end|>"
    tokenizer = make_tokenizer(ENDS_WITH_TURN, unk_token="<|turn|>")
    chat = ChatTokenizer(tokenizer)
    assert chat.stop_text == "<|turn|>"
    assert chat.stop_id == tokenizer.unk_token_id != tokenizer.eos_token_id


@pytest.mark.parametrize("template", [None, ENDS_WITH_NOTHING])
def test_without_one_in_the_template_it_is_eos(template: str | None) -> None:
    assert ChatTokenizer(make_tokenizer(template)).stop_text == "<|im_end|>"
    with pytest.raises(ModelError, match="nothing ends an answer"):
        ChatTokenizer(make_tokenizer(template, eos_token=None))


@pytest.mark.parametrize("pad", ["<|im_end|>", "<|pad|>", None])
def test_the_padding_token_has_no_say_in_what_is_trained(pad: str | None) -> None:
    chat = ChatTokenizer(make_tokenizer(pad_token=pad))
    ids = chat.encode(Group(Prompt("p"), (Completion("a"),))).completions[0].ids
    assert chat.tokenizer.convert_ids_to_tokens(list(ids)) == ["a", "<|im_end|>"]


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{ a.b.c }}"])
def test_a_template_that_fails_is_an_error_of_the_model(template: str) -> None:
    with pytest.raises(ModelError, match="the chat template fails"):
        ChatTokenizer(make_tokenizer(template))


def test_a_template_that_leaves_the_answer_out_is_an_error_of_the_model() -> None:
    """What ends an answer would be looked for where there is none."""
    with pytest.raises(ModelError, match="leaves out what the assistant says"):
        ChatTokenizer(make_tokenizer("{% for m in messages %}{{ m.role }}<|im_end|>{% endfor %}"))


@pytest.mark.parametrize(
    ("template", "adds", "who"),
    [
        ("{{ bos_token }}<|bos|>{{ messages[-1].content }}", "$A", "the chat template"),
        (None, "<|bos|> <|bos|> $A", "the tokenizer itself"),
    ],
)
def test_two_bos_of_one_hand_are_an_error(template: str | None, adds: str, who: str) -> None:
    with pytest.raises(ModelError, match=f"{who} begins a text with two BOS"):
        ChatTokenizer(make_tokenizer(template, adds=adds, bos_token="<|bos|>"))


# Prompts


def test_a_conversation_is_opened_for_the_assistant(chat: ChatTokenizer) -> None:
    group = Group(talk("system: be kind", "user: hi"), (Completion("yo"),))
    assert chat.tokenizer.decode(chat.encode(group).prompt_ids) == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_prefix_of_the_assistant_is_continued(chat: ChatTokenizer) -> None:
    ids = chat.encode(Group(talk("user: count", "assistant: one, "))).prompt_ids
    assert chat.tokenizer.decode(ids) == (
        "<|im_start|>user\ncount<|im_end|>\n<|im_start|>assistant\none, "
    )


def test_a_conversation_without_a_template_is_an_error_of_the_model() -> None:
    chat = ChatTokenizer(make_tokenizer(None))
    with pytest.raises(ModelError, match="no chat template") as caught:
        chat.fit([Group(talk("user: hi"), where="a:7")], 100, bad_rows="drop")
    assert (caught.value.where, caught.value.exit_code) == ("a:7", 4)


@pytest.mark.parametrize(
    ("adds", "expected"),
    [
        ("$A", ["p", "q"]),
        ("<|bos|> $A", ["<|bos|>", "p", "q"]),
        ("<|bos|> $A <|im_end|>", ["<|bos|>", "p", "q"]),  # an EOS would part prompt and answer
        ("$A <|im_end|>", ["p", "q"]),
    ],
)
def test_plain_prompts_get_what_the_tokenizer_puts_before_a_text(
    adds: str, expected: list[str]
) -> None:
    chat = ChatTokenizer(make_tokenizer(adds=adds, bos_token="<|bos|>"))
    tokens = chat.encode(Group(Prompt("pq"), (Completion("a"),)))
    spell = chat.tokenizer.convert_ids_to_tokens
    assert spell(list(tokens.prompt_ids)) == expected
    assert spell(list(tokens.completions[0].ids)) == ["a", "<|im_end|>"]


def test_a_template_and_a_tokenizer_that_both_add_bos_give_one() -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    chat = ChatTokenizer(make_tokenizer(template, adds="<|bos|> $A", bos_token="<|bos|>"))
    ids = chat.encode(Group(talk("user: hi"))).prompt_ids
    assert ids.count(chat.tokenizer.bos_token_id) == 1


def test_an_empty_prompt_is_bos_or_an_error() -> None:
    group = Group(Prompt(""), (Completion("a"),), where="a:1")
    with_bos = ChatTokenizer(make_tokenizer(bos_token="<|bos|>"))
    assert with_bos.encode(group).prompt_ids == (with_bos.tokenizer.bos_token_id,)
    with pytest.raises(DataError, match="nothing predicts the first one") as caught:
        ChatTokenizer(make_tokenizer()).encode(group)
    assert caught.value.where == "a:1"


def test_a_template_that_refuses_the_turns_makes_a_bad_row() -> None:
    template = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    chat = ChatTokenizer(make_tokenizer(template))
    good, bad = Group(talk("user: a")), Group(talk("user: a", "user: b"), where="a:2")
    fitted = chat.fit([good, bad], 100, bad_rows="drop")
    assert fitted.groups == [good]
    assert [d.where for d in fitted.dropped] == ["a:2"]
    assert "roles must alternate" in fitted.dropped[0].reason


# Text stays text

INJECTED = st.lists(st.sampled_from((*CONTROL, "a", " ", "\n", "<|", "|>", "é")), max_size=6).map(
    "".join
)


@given(INJECTED, INJECTED, st.booleans())
def test_no_text_becomes_a_control_token(user: str, answer: str, prefix: bool) -> None:
    turns = [Message("user", f"u{user}u"), *([Message("assistant", f"p{answer}")] * prefix)]
    harmless = [Message("user", "uu"), *([Message("assistant", "p")] * prefix)]
    tokens = CHAT.encode(Group(Prompt("", tuple(turns)), (Completion(answer),)))
    expected = CHAT.encode(Group(Prompt("", tuple(harmless)), (Completion(""),)))
    control = control_ids(CHAT)
    for ids, plain in (
        (tokens.prompt_ids, expected.prompt_ids),
        (tokens.completions[0].ids, expected.completions[0].ids),
    ):
        assert [i for i in ids if i in control] == [i for i in plain if i in control]
    decoded = CHAT.tokenizer.decode(tokens.prompt_ids)
    assert f"<|im_start|>user\nu{user}u<|im_end|>" in decoded
    assert decoded.endswith(f"assistant\np{answer}" if prefix else "assistant\n")


@given(INJECTED)
def test_plain_prompts_are_text_too(text: str) -> None:
    ids = CHAT.encode(Group(Prompt(f"p{text}"))).prompt_ids
    assert not control_ids(CHAT) & set(ids)
    assert CHAT.tokenizer.decode(ids) == f"p{text}"


def test_the_next_text_is_encoded_as_before(chat: ChatTokenizer) -> None:
    """Splitting special tokens is a state of the tokenizer: it must not stay behind."""
    chat.encode(Group(Prompt("p"), (Completion("<|im_end|>"),)))
    assert chat.tokenizer("<|im_end|>")["input_ids"] == [chat.stop_id]


# Completions


@given(st.text(st.characters(codec="utf-8"), max_size=30), st.sampled_from(FinishReason))
def test_decoding_gives_the_completion_back(text: str, finish: FinishReason) -> None:
    tokens = CHAT.encode(Group(Prompt("p"), (Completion(text, finish),)))
    (completion,) = tokens.completions
    assert CHAT.decode(completion.ids) == text
    assert completion.ids.count(CHAT.stop_id) == (finish is FinishReason.STOP)
    assert completion.finish is finish


@given(st.text(max_size=8).filter(str.isascii), st.text(max_size=8).filter(str.isascii))
def test_the_prompt_is_the_same_whatever_follows(one: str, two: str) -> None:
    encode = CHAT.encode
    prompt = Prompt("before ")
    pair = encode(Group(prompt, (Completion(one), Completion(two)), 0, 1))
    assert pair.prompt_ids == encode(Group(prompt)).prompt_ids
    assert pair.completions[1] == encode(Group(prompt, (Completion(two),))).completions[0]


def test_scores_labels_and_choices_come_along_or_stay_behind(chat: ChatTokenizer) -> None:
    pair = (Completion("a", score=1.5), Completion("b", label=True))
    group = Group(Prompt("p"), pair, 1, 0, "a:3")
    tokens = chat.encode(group)
    assert (tokens.chosen, tokens.rejected, tokens.where) == (1, 0, "a:3")
    assert [(c.score, c.label) for c in tokens.completions] == [(1.5, None), (None, True)]
    bare = chat.encode(group, with_completions=False)
    assert (bare.completions, bare.chosen, bare.rejected) == ((), None, None)
    assert bare.prompt_ids == tokens.prompt_ids


def test_render_marks_what_is_trained(chat: ChatTokenizer) -> None:
    pair = (Completion("yes"), Completion("n", FinishReason.LENGTH))
    assert chat.render(Group(talk("user: hi"), pair, 0, 1)) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n\n[[yes<|im_end|>]]\n[[n]]"
    )


# Steps


def steps(*texts: str, separator: str = "\n", finish: FinishReason = FinishReason.STOP) -> Group:
    """A completion whose steps are right and wrong in turn."""
    made, start = [], 0
    for number, text in enumerate(texts):
        made.append(Step(start, start + len(text), number % 2 == 0))
        start += len(text) + len(separator)
    return Group(
        Prompt("p"), (Completion(separator.join(texts), finish, steps=tuple(made)),), where="a:1"
    )


STEPS = st.lists(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).filter(str.strip), min_size=1
)


@given(STEPS, st.sampled_from(("\n", "", "\n\n")), st.sampled_from(FinishReason))
def test_a_step_ends_with_the_separator_behind_it(
    texts: list[str], separator: str, finish: FinishReason
) -> None:
    group = steps(*texts, separator=separator, finish=finish)
    (completion,) = CHAT.encode(group).completions
    assert CHAT.decode(completion.ids) == separator.join(texts)
    begin, found = 0, []
    for last, _ in completion.steps:
        found.append(CHAT.decode(completion.ids[begin : last + 1]))
        begin = last + 1
    assert found == [*(text + separator for text in texts[:-1]), texts[-1]]
    # only the stop token stands behind the last step
    assert completion.ids[begin:] == ((CHAT.stop_id,) if finish is FinishReason.STOP else ())
    assert [label for _, label in completion.steps] == [s.label for s in group.completions[0].steps]


def test_no_token_reaches_over_the_end_of_a_step() -> None:
    """With merges, 'b\\nc' in one piece would have a token for '\\nc' in which a step ends."""
    tokenizer = make_tokenizer(merges=[("Ċ", "c"), ("b", "Ċ")])
    chat = ChatTokenizer(tokenizer)
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab\nc")["input_ids"]) == ["a", "b", "Ċc"]
    (completion,) = chat.encode(steps("ab", "c")).completions
    spelt = tokenizer.convert_ids_to_tokens(list(completion.ids))
    assert spelt == ["a", "bĊ", "c", "<|im_end|>"]
    assert completion.steps == ((1, True), (2, False))


def test_a_step_without_tokens_makes_a_bad_row() -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("x", "")
    chat = ChatTokenizer(tokenizer)
    fitted = chat.fit([steps("a", "b"), steps("x", "b", separator="")], None, bad_rows="drop")
    assert [str(bad) for bad in fitted.dropped] == ["a:1: a step has no tokens"]


def test_what_was_said_of_a_pair_comes_along() -> None:
    said = {"margin": 2.0, "probability": 0.9}
    pair = Group(Prompt("p"), (Completion("a"), Completion("b")), 0, 1, columns=said)
    tokens = CHAT.encode(pair)
    assert (tokens.margin, tokens.probability) == (2.0, 0.9)
    bare = CHAT.encode(pair, with_completions=False)
    assert (bare.margin, bare.probability) == (None, None)
    single = Group(Prompt("p"), (Completion("a"),), columns={"margin": "of the page"})
    assert CHAT.encode(single).margin is None


# Length


def test_the_limit_is_for_prompt_and_longest_completion(chat: ChatTokenizer) -> None:
    fits = Group(Prompt("pp"), (Completion("a"), Completion("abc")), 0, 1, "a:1")  # 2 + 3 + stop
    long = Group(Prompt("ppp"), (Completion("abc"), Completion("a")), 0, 1, "a:2")
    fitted = chat.fit([fits, long], 6, bad_rows="drop")
    assert fitted.groups == [fits]
    assert fitted.tokens == [chat.encode(fits)]
    assert str(fitted.dropped[0]) == "a:2: longer than max_length 6 (7 tokens)"
    with pytest.raises(DataError, match=r"1 of 2 rows .*\n  a:2: longer than max_length 6 \(7 tok"):
        chat.fit([fits, long], 6)
    assert len(chat.fit([fits, long], None).groups) == 2


def test_no_group_that_fits_is_an_error(chat: ChatTokenizer) -> None:
    with pytest.raises(DataError, match="no row is left"):
        chat.fit([Group(Prompt("ppp"))], 2, bad_rows="drop")


def test_only_a_text_that_must_be_too_long_is_not_tokenised() -> None:
    """A token may stand for a thousand characters where the vocabulary has one that long."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["=" * 1_000])
    chat = ChatTokenizer(tokenizer)
    fits = Group(Prompt("p"), (Completion("=" * 1_000),), where="a:1")  # 1 + 1 + stop
    long = Group(Prompt("p"), (Completion("x" * 2_999),), where="a:2")
    huge = Group(Prompt("p"), (Completion("x" * 3_000),), where="a:3")
    fitted = chat.fit([fits, long, huge], 3, bad_rows="drop")
    assert fitted.groups == [fits]
    assert [bad.detail for bad in fitted.dropped] == ["3,001 tokens", "3,001 characters"]


def test_a_pair_of_the_same_tokens_is_a_bad_row() -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    pair = Group(Prompt("p"), (Completion("A"), Completion("a")), 0, 1, "a:1")
    with pytest.raises(DataError, match="a:1: chosen and rejected are the same tokens"):
        ChatTokenizer(tokenizer).fit([pair], None)
