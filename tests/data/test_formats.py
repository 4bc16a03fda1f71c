from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.data.formats import Parsed, parse_rows, to_row
from truing.data.readers import Row, read_rows
from truing.errors import DataError
from truing.groups import Completion, FinishReason, Group, Message, Prompt, Step

HH = Path(__file__).parents[3] / "shared" / "data" / "hh-harmless.jsonl.gz"


def said(*turns: str) -> list[dict[str, str]]:
    """'user: hi' -> {role, content}."""
    split = [turn.split(": ", 1) for turn in turns]
    return [{"role": role, "content": content} for role, content in split]


def parse(*values: dict[str, Any], **options: Any) -> Parsed:
    return parse_rows([Row(v, f"a:{i}") for i, v in enumerate(values, 1)], **options)


def only(*values: dict[str, Any]) -> Group:
    return parse(*values).groups[0]


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}

# Every type, plain and conversational

QUESTION = said("system: be kind", "user: hi")
TALK = Prompt("hi", (Message("system", "be kind"), Message("user", "hi")))


@pytest.mark.parametrize("talk", [False, True])
@pytest.mark.parametrize("type_", ["prompt-only", "prompt-completion", "preference", "unpaired"])
def test_the_types_of_the_field(type_: str, talk: bool) -> None:
    def answer(text: str) -> Any:
        return said(f"assistant: {text}") if talk else text

    row = {"prompt": QUESTION if talk else "hi"}
    if type_ in ("prompt-completion", "unpaired"):
        row["completion"] = answer("one")
    if type_ == "unpaired":
        row["label"] = False
    if type_ == "preference":
        row |= {"chosen": answer("one"), "rejected": answer("two")}
    parsed = parse(row)
    (group,) = parsed.groups
    assert (parsed.type, group.type, parsed.dropped) == (type_, type_, [])
    assert parsed.format == ("conversational" if talk else "plain")
    assert not parsed.implicit_prompt
    assert group.prompt == (TALK if talk else Prompt("hi"))
    texts = {"prompt-only": (), "preference": ("one", "two")}.get(type_, ("one",))
    assert tuple(c.text for c in group.completions) == texts
    assert all(c.label is (False if type_ == "unpaired" else None) for c in group.completions)
    assert (group.chosen, group.rejected) == ((0, 1) if type_ == "preference" else (None, None))
    assert group.where == "a:1"


def test_implicit_prompt_of_conversations_is_the_shared_turns() -> None:
    parsed = parse(
        {
            "chosen": [*QUESTION, *said("assistant: one")],
            "rejected": [*QUESTION, *said("assistant: two")],
        }
    )
    assert parsed.implicit_prompt
    assert parsed.groups[0].prompt == TALK
    assert [c.text for c in parsed.groups[0].completions] == ["one", "two"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue", "The sky is green", "The sky is"),
        ("The sky is blue", "The sky is black", "The sky is"),  # not "The sky is bl"
        ("The sky is", "The sky is blue", "The sky"),  # both keep a rest
        ("Why?\n\nSo", "Why?\n\nNo", "Why?\n"),
        ("a b  ", "a b c", "a"),  # a blank rest is no rest
    ],
)
def test_implicit_prompt_of_texts_ends_at_a_word(chosen: str, rejected: str, prompt: str) -> None:
    parsed = parse({"chosen": chosen, "rejected": rejected})
    (group,) = parsed.groups
    assert (parsed.format, parsed.implicit_prompt) == ("plain", True)
    assert group.prompt == Prompt(prompt)
    assert [prompt + c.text for c in group.completions] == [chosen, rejected]


@given(st.text("ab \n", max_size=12), st.text("ab \n", max_size=12), st.text("ab \n", max_size=12))
def test_implicit_prompt_and_rests_are_the_texts(head: str, one: str, two: str) -> None:
    chosen, rejected = head + one, head + two
    rows = [{"chosen": "x y", "rejected": "x z"}, {"chosen": chosen, "rejected": rejected}]
    parsed = parse(*rows, bad_rows="drop")
    if parsed.dropped:
        return
    group = parsed.groups[1]
    assert [group.prompt.text + c.text for c in group.completions] == [chosen, rejected]
    assert group.prompt.text.strip()
    assert all(c.text.strip() and c.text[0].isspace() for c in group.completions)


def test_transcripts_become_conversations() -> None:
    head = "\n\nHuman: hi \n\nAssistant: hello\n\nHuman: tell me: why?\n\nand how?\n\nAssistant:"
    parsed = parse({"chosen": f"{head} so.\n", "rejected": f"{head} Human: no"})
    (group,) = parsed.groups
    assert (parsed.format, parsed.implicit_prompt) == ("transcript", True)
    assert group.prompt.messages == (
        Message("user", "hi"),
        Message("assistant", "hello"),
        Message("user", "tell me: why?\n\nand how?"),
    )
    assert group.prompt.text == "tell me: why?\n\nand how?"
    assert [c.text for c in group.completions] == ["so.", "Human: no"]


def test_messages_train_the_last_assistant_turn() -> None:
    group = only({"messages": said("user: a", "assistant: b", "user: c", "assistant: d")})
    assert group.type == "prompt-completion"
    assert [m.content for m in group.prompt.messages or ()] == ["a", "b", "c"]
    assert group.completions == (Completion("d"),)


def test_a_prompt_may_end_within_the_assistants_turn() -> None:
    group = only({"prompt": said("user: count", "assistant: one, "), "completion": "two"})
    assert group.prompt.text == "count\n\none, "
    assert group.completions[0].text == "two"


def test_a_question_repeated_beside_whole_conversations_is_kept_as_a_column() -> None:
    talks = {
        "chosen": said("user: hi", "assistant: one"),
        "rejected": said("user: hi", "assistant: two"),
    }
    parsed = parse({"prompt": "hi", **talks}, {"prompt": "ho", **talks}, bad_rows="drop")
    assert parsed.implicit_prompt
    assert parsed.groups[0].columns == {"prompt": "hi"}
    assert parsed.dropped[0].reason == "'prompt' is not in the conversations of chosen and rejected"


def test_finish_score_and_other_columns() -> None:
    pair = only(
        {
            "prompt": "p",
            "chosen": "a",
            "rejected": "b",
            "chosen_finish": "length",
            "rejected_score": "-2.5",
            "source": "web",
        }
    )
    assert pair.completions == (
        Completion("a", finish=FinishReason.LENGTH),
        Completion("b", score=-2.5),
    )
    assert pair.columns == {"source": "web"}
    single = only({"prompt": "p", "completion": "c", "finish": "length", "score": 3, "answer": 7})
    assert single.completions == (Completion("c", FinishReason.LENGTH, 3.0),)
    assert single.columns == {"answer": 7}


@pytest.mark.parametrize("written", [True, 1, "1", "true", "True"])
def test_labels_of_files_without_types(written: Any) -> None:
    group = only({"prompt": "p", "completion": "c", "label": written})
    assert group.completions[0].label is True


@pytest.mark.parametrize("talk", [False, True])
def test_scored_answers(talk: bool) -> None:
    def answer(text: str) -> Any:
        return said(f"assistant: {text}") if talk else text

    row = {"prompt": QUESTION if talk else "hi", "completions": [answer("a"), answer("b")]}
    parsed = parse({**row, "scores": [1, "-2.5"], "finishes": ["stop", "length"], "id": 3})
    (group,) = parsed.groups
    assert (parsed.type, group.type) == ("scored", "scored")
    assert parsed.format == ("conversational" if talk else "plain")
    assert group.prompt == (TALK if talk else Prompt("hi"))
    assert group.completions == (
        Completion("a", score=1.0),
        Completion("b", FinishReason.LENGTH, -2.5),
    )
    assert group.columns == {"id": 3}


@pytest.mark.parametrize(
    ("separator", "text"), [(None, "a\nbc\nd"), (" # ", "a # bc # d"), ("", "abcd")]
)
def test_steps_are_joined_and_know_where_they_are(separator: str | None, text: str) -> None:
    row = {"prompt": "p", "completions": ["a", "bc", "d"], "labels": [True, 0, "false"]}
    parsed = parse({**row, "step_separator": separator, "finish": "length", "id": 3})
    (group,) = parsed.groups
    assert (parsed.type, group.type) == ("stepwise", "stepwise")
    (completion,) = group.completions
    assert (completion.text, completion.finish) == (text, FinishReason.LENGTH)
    own = [(completion.text[s.start : s.end], s.label) for s in completion.steps]
    assert own == [("a", True), ("bc", False), ("d", False)]
    assert group.columns == {"id": 3}
    assert parse(to_row(group)).groups[0].completions == group.completions


def test_several_answers_or_the_steps_of_one_must_be_clear() -> None:
    row = {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2], "labels": [True, False]}
    with pytest.raises(DataError, match="several answers, or the steps of one"):
        parse(row)


def test_completions_that_nothing_is_said_of_are_a_column_of_prompts() -> None:
    parsed = parse({"prompt": "p", "completions": ["a", "b"]})
    assert parsed.type == "prompt-only"
    assert parsed.groups[0].columns == {"completions": ["a", "b"]}


def test_pairs_may_say_how_sure_they_are() -> None:
    group = only({**PAIR, "margin": "1.5", "probability": 0.8, "id": 3})
    assert group.columns == {"margin": 1.5, "probability": 0.8, "id": 3}
    # they are the pair's: completions drawn for its prompt inherit neither
    assert group.bare() == Group(Prompt("p"), where="a:1", columns={"id": 3})
    # of a row that is no pair, such a column may be anything, for instance a reward's answer
    prompt = only({"prompt": "p", "margin": "wide", "id": 3})
    assert prompt.bare() == prompt


def test_your_own_column_names() -> None:
    parsed = parse(
        {"question": "p", "good": "a", "bad": "b"},
        columns={"question": "prompt", "good": "chosen", "bad": "rejected"},
    )
    assert parsed.type == "preference"
    assert parsed.groups[0].columns == {}


# What cannot be used


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": " ", "completion": "c"}, "'prompt' is empty"),
        ({"prompt": "p", "completion": "\n"}, "'completion' is empty"),
        ({"prompt": "p", "completion": None}, "'completion' is missing"),
        ({"prompt": "p"}, "'completion' is missing"),
        ({"prompt": 3, "completion": "c"}, "'prompt' is int, not text"),
        ({"prompt": "p", "completion": {"text": "c"}}, "'completion' is dict, not text"),
        ({"prompt": "p", "completion": "\ud800"}, "half a character"),
        ({"prompt": "p", "completion": said("assistant: c")}, "'prompt' is text, but"),
        ({"prompt": [], "completion": "c"}, "'prompt' is empty"),
        ({"prompt": ["p"], "completion": "c"}, "message without role and content"),
        ({"prompt": [{"role": "user"}], "completion": "c"}, "message without role and content"),
        ({"prompt": said("human: p"), "completion": "c"}, "a role that is none of: system"),
        ({"prompt": said("user:  "), "completion": "c"}, "the prompt is empty"),
        ({"prompt": [{"role": "user", "content": ["p"]}], "completion": "c"}, "is list, not text"),
        (
            {"prompt": [{**said("user: p")[0], "tool_calls": [1]}], "completion": "c"},
            "'tool_calls', which is not supported",
        ),
        ({"prompt": said("user: p"), "completion": said("user: c")}, "not one assistant message"),
        ({"prompt": "p", "completion": "c", "finish": "eos"}, "neither 'stop' nor 'length'"),
        ({"prompt": "p", "completion": "c", "score": "good"}, "not a finite number"),
        ({"prompt": "p", "completion": "c", "score": float("nan")}, "not a finite number"),
        ({"prompt": "p", "completion": "c", "tools": [{}]}, "'tools' is not supported"),
        ({"prompt": said("user: p"), "completion": "c"}, "conversational, but the first good row"),
    ],
)
def test_bad_single_rows(row: dict[str, Any], reason: str) -> None:
    parsed = parse({"prompt": "p", "completion": "good"}, row, bad_rows="drop")
    assert len(parsed.groups) == 1
    assert [bad.where for bad in parsed.dropped] == ["a:2"]
    assert reason in parsed.dropped[0].reason


TWO = ["a", "b"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"completions": "ab", "scores": [1, 2]}, "'completions' is str, not a list"),
        ({"completions": TWO, "scores": 1}, "'scores' is int, not a list"),
        ({"completions": TWO, "scores": None}, "'scores' is missing"),
        ({"completions": TWO, "scores": [1]}, "'completions' and 'scores' are not equally many"),
        ({"completions": ["a"], "scores": [1]}, "'completions' has fewer than two answers"),
        ({"completions": ["a", " "], "scores": [1, 2]}, "'completions' is empty"),
        ({"completions": ["a", 3], "scores": [1, 2]}, "'completions' is int, not text"),
        ({"completions": TWO, "scores": [1, None]}, "'scores' is not a finite number"),
        ({"completions": TWO, "scores": [1, "best"]}, "'scores' is not a finite number"),
        ({"completions": TWO, "scores": [1, float("nan")]}, "'scores' is not a finite number"),
        ({"completions": TWO, "scores": [1, float("inf")]}, "'scores' is not a finite number"),
        (
            {"completions": TWO, "scores": [1, 2], "finishes": ["stop"]},
            "'finishes' are not equally",
        ),
        ({"completions": TWO, "scores": [1, 2], "finishes": ["stop", "eos"]}, "neither 'stop' nor"),
        (
            {"completions": ["a", said("assistant: b")], "scores": [1, 2]},
            "'prompt' is text, but 'completions' is a conversation",
        ),
        (
            {"prompt": said("user: p"), "completions": [said("user: a"), "b"], "scores": [1, 2]},
            "'completions' is not one assistant message",
        ),
    ],
)
def test_bad_scored_rows(row: dict[str, Any], reason: str) -> None:
    good = {"prompt": "p", "completions": TWO, "scores": [1, 2]}
    assert reason in refused(good, {"prompt": "p", **row})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"completions": "ab", "labels": [True]}, "'completions' is str, not a list"),
        ({"completions": TWO, "labels": True}, "'labels' is bool, not a list"),
        ({"completions": TWO, "labels": [True]}, "'completions' and 'labels' are not equally many"),
        ({"completions": [], "labels": []}, "'completions' is empty"),
        ({"completions": ["a", "\n"], "labels": [True, True]}, "'completions' is empty"),
        ({"completions": TWO, "labels": [True, None]}, "'labels' is neither true nor false"),
        ({"completions": TWO, "labels": [True, 0.5]}, "'labels' is neither true nor false"),
        (
            {"completions": [said("assistant: a"), "b"], "labels": [True, True]},
            "'completions' is list, not text",
        ),
        (
            {"completions": TWO, "labels": [True, True], "step_separator": 7},
            "'step_separator' is int, not text",
        ),
    ],
)
def test_bad_stepwise_rows(row: dict[str, Any], reason: str) -> None:
    good = {"prompt": "p", "completions": ["a"], "labels": [True]}
    assert reason in refused(good, {"prompt": "p", **row})


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"margin": "big"}, "'margin' is not a finite number"),
        ({"margin": float("inf")}, "'margin' is not a finite number"),
        ({"probability": float("nan")}, "'probability' is not a finite number"),
        ({"probability": 1.01}, "'probability' is not between 0 and 1"),
        ({"probability": -0.1}, "'probability' is not between 0 and 1"),
    ],
)
def test_bad_margins_and_probabilities(extra: dict[str, Any], reason: str) -> None:
    assert reason in refused(PAIR, {**PAIR, **extra})


def refused(good: dict[str, Any], bad: dict[str, Any]) -> str:
    """Why the second row is left out."""
    parsed = parse(good, bad, bad_rows="drop")
    assert [dropped.where for dropped in parsed.dropped] == ["a:2"]
    return parsed.dropped[0].reason


HUMAN = "\n\nHuman: a\n\nAssistant:"


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (f"{HUMAN} b", f"{HUMAN} b ", "chosen and rejected are the same"),
        (f"{HUMAN} ", f"{HUMAN} c", "'chosen' is empty"),
        (f"{HUMAN} b", "\n\nHuman: x\n\nAssistant: c", "the prompts of chosen and rejected differ"),
        (f"{HUMAN} b", f"{HUMAN} b\n\nHuman: x\n\nAssistant: c", "the prompts of chosen and"),
        (f"{HUMAN} b\n\nHuman: c", f"{HUMAN} b", "last turn of 'chosen' is not the assistant's"),
        (f"{HUMAN} b\n\nAssistant: c", f"{HUMAN} b", "two turns of one speaker"),
        (f"{HUMAN} b", f"Once. {HUMAN} c", "'rejected' does not begin with a turn"),
        ("\n\nHuman:  \n\nAssistant: b", "\n\nHuman:\n\nAssistant: c", "the prompt is empty"),
        ("a b", "a c", "plain with implicit prompt, but the first good row is transcript"),
        (said("user: a", "assistant: b"), f"{HUMAN} b", "one of chosen and rejected is a conv"),
    ],
)
def test_bad_transcripts(chosen: Any, rejected: Any, reason: str) -> None:
    good = {"chosen": f"{HUMAN} yes", "rejected": f"{HUMAN} no"}
    parsed = parse(good, {"chosen": chosen, "rejected": rejected}, bad_rows="drop")
    assert len(parsed.groups) == 1
    assert reason in parsed.dropped[0].reason


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("same", "same", "are the same"),
        ("one", "two", "share no prompt"),
        (said("assistant: a"), said("assistant: b"), "the prompt is empty"),
        (
            said("user: q", "assistant: a", "assistant: b"),
            said("user: q", "assistant: a", "assistant: c"),
            "two turns of one speaker",
        ),
    ],
)
def test_bad_implicit_pairs(chosen: Any, rejected: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        parse({"chosen": chosen, "rejected": rejected})


def test_one_error_lists_the_count_the_first_five_and_the_way_out() -> None:
    rows = [{"prompt": "p", "completion": " " if i else "c"} for i in range(8)]
    with pytest.raises(DataError) as caught:
        parse(*rows)
    text = str(caught.value)
    assert "7 of 8 rows cannot be used" in text
    assert "a:2: 'completion' is empty" in text
    assert "a:6:" in text
    assert "a:7:" not in text
    assert "and 2 more" in text
    assert "data.bad_rows=drop" in text


def test_dropping_every_row_is_an_error() -> None:
    with pytest.raises(DataError, match="no row is left"):
        parse({"prompt": "p", "completion": ""}, bad_rows="drop")
    with pytest.raises(DataError, match="there are no rows"):
        parse()


@pytest.mark.parametrize(
    ("row", "found", "suggested"),
    [
        ({"question": "q", "answer": "a"}, "answer, question", "answer: completion, question: pro"),
        ({"promt": "q"}, "promt", "promt: prompt"),
        ({"x": "q"}, "x", "my_name: prompt"),
        ({"text": "q"}, "text", "'text' alone does not say"),
        ({"prompt": None, "chosen": "a"}, "chosen, prompt", "my_name: prompt"),
    ],
)
def test_unknown_columns_are_named_with_a_suggestion(
    row: dict[str, Any], found: str, suggested: str
) -> None:
    with pytest.raises(DataError, match=f"columns {found}, but needed is one of") as caught:
        parse(row)
    assert suggested in caught.value.remedy
    assert caught.value.where == "a:1"


@pytest.mark.parametrize(
    "second",
    [{"prompt": "p", "completion": "c"}, {"messages": said("user: a", "assistant: b")}],
)
def test_two_types_in_one_set_are_an_error_even_when_dropping(second: dict[str, Any]) -> None:
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    with pytest.raises(DataError, match=r"prompt-completion row .* in preference data") as caught:
        parse(pair, second, bad_rows="drop")
    assert caught.value.where == "a:2"


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"q": "promt"}, "'promt' is no standard name"),
        ({"quest": "prompt"}, "there is no 'quest'"),
        ({"q": "completion"}, "two columns would be called 'completion'"),
        ({"q": "prompt", "r": "prompt"}, "two columns would be called 'prompt'"),
    ],
)
def test_column_maps_that_cannot_be_meant(columns: dict[str, str], what: str) -> None:
    with pytest.raises(DataError, match=what):
        parse({"q": "p", "r": "p", "completion": "c"}, columns=columns)


# There and back

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)
NUMBER = st.none() | st.floats(allow_nan=False, allow_infinity=False)
COMPLETIONS = st.builds(
    Completion,
    TEXT,
    st.sampled_from(FinishReason),
    NUMBER,
)
MESSAGES = st.lists(
    st.builds(Message, st.sampled_from(("system", "user", "assistant")), TEXT), min_size=1
)
COLUMNS: st.SearchStrategy[Mapping[str, Any]] = st.dictionaries(
    st.sampled_from(("source", "answer")), st.integers() | TEXT
)


def readable(messages: list[Message]) -> str:
    """What `Prompt.text` of a conversation is meant to be, in other words than the code's."""
    *_, last = messages
    asked = next((m.content for m in reversed(messages) if m.role == "user"), None)
    if asked is None:
        return last.content
    return f"{asked}\n\n{last.content}" if last.role == "assistant" else asked


@st.composite
def groups(draw: st.DrawFn) -> Group:
    messages = draw(st.none() | MESSAGES)
    text = draw(TEXT) if messages is None else readable(messages)
    prompt = Prompt(text, None if messages is None else tuple(messages))
    first, second = draw(COMPLETIONS), draw(COMPLETIONS)
    columns = draw(COLUMNS)
    match draw(st.integers(0, 5)):
        case 0:
            return Group(prompt, where="a:1", columns=columns)
        case 1:
            return Group(prompt, (first,), where="a:1", columns=columns)
        case 2:
            label = draw(st.booleans())
            judged = Completion(first.text, first.finish, first.score, label)
            return Group(prompt, (judged,), where="a:1", columns=columns)
        case 3:
            scores = st.floats(allow_nan=False, allow_infinity=False)
            scored = tuple(replace(c, score=draw(scores)) for c in (first, second))
            return Group(prompt, scored, where="a:1", columns=columns)
        case 4:
            return Group(prompt, (draw(stepwise(first)),), where="a:1", columns=columns)
        case _:
            other = Completion(second.text + "x" * (first.text == second.text), second.finish)
            if draw(st.booleans()):
                columns = {**columns, "margin": draw(NUMBER.filter(bool)), "probability": 0.75}
            return Group(prompt, (first, other), 0, 1, "a:1", columns)


@st.composite
def stepwise(draw: st.DrawFn, like: Completion) -> Completion:
    """The same completion with other text, in steps."""
    texts = draw(st.lists(TEXT, min_size=1, max_size=4))
    separator = draw(st.sampled_from(("\n", "", " ки\n")))
    steps, start = [], 0
    for text in texts:
        steps.append(Step(start, start + len(text), draw(st.booleans())))
        start += len(text) + len(separator)
    return replace(like, text=separator.join(texts), steps=tuple(steps))


@given(groups())
def test_a_row_of_a_group_is_read_back_as_the_group(group: Group) -> None:
    row = json.loads(json.dumps(to_row(group)))
    assert parse(row).groups == [group]


def test_defaults_are_not_written() -> None:
    group = Group(Prompt("p"), (Completion("a"), Completion("b"), Completion("c")), 2, 0)
    assert to_row(group) == {"prompt": "p", "chosen": "c", "rejected": "a"}


def test_a_column_of_the_old_row_is_not_read_as_one_of_the_new() -> None:
    group = Group(
        Prompt("p"), (Completion("a"),), columns={"score": 7, "label": True, "margin": 1, "id": 3}
    )
    assert to_row(group) == {"id": 3, "prompt": "p", "completion": "a"}


def test_completions_without_a_choice_have_no_row() -> None:
    with pytest.raises(DataError, match="2 completions and no choice"):
        to_row(Group(Prompt("p"), (Completion("a"), Completion("b"))))


@pytest.mark.skipif(not HH.exists(), reason="the shared HH pairs are not here")
def test_real_transcripts_are_all_used_or_accounted_for() -> None:
    rows = list(read_rows(str(HH)))
    parsed = parse_rows(rows, bad_rows="drop")
    assert (parsed.type, parsed.format, parsed.implicit_prompt) == (
        "preference",
        "transcript",
        True,
    )
    assert len(parsed.groups) + len(parsed.dropped) == len(rows)
    assert 0 < len(parsed.dropped) < len(rows) * 0.01
    again = parse_rows([Row(to_row(group), group.where) for group in parsed.groups])
    assert again.groups == parsed.groups
