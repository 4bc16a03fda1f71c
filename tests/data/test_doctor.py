from __future__ import annotations

from collections.abc import Callable

import pytest

from truing.data.chat import ChatTokenizer
from truing.data.doctor import Spread, describe, examine
from truing.errors import DataError

Write = Callable[..., str]


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def talk(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def test_what_is_counted(write_jsonl: Write) -> None:
    path = write_jsonl(
        pair("one", "long", "b"),
        pair("one", "b", "long"),  # the first the other way round
        pair("one", "long", "b"),  # the first again
        pair("two", "same", "same"),
        pair("six", "aa", "bb"),
        pair("six", "a", ""),
    )
    e = examine(path)
    assert (e.type, e.format, e.implicit_prompt, e.rows) == ("preference", "plain", False, 4)
    assert (e.repeated_prompts, e.repeated_rows, e.contradictions) == (2, 1, 3)
    assert e.chosen_longer == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert [(d.where, d.reason) for d in e.dropped] == [
        ("rows.jsonl:4", "chosen and rejected are the same"),
        ("rows.jsonl:6", "'rejected' is empty"),
    ]
    assert e.control_text is None
    assert e.lengths == {
        "prompt characters": Spread(3, 3, 3),
        "chosen characters": Spread(2, 4, 4),
        "rejected characters": Spread(1, 4, 4),
    }


def test_lengths_are_spread(write_jsonl: Write) -> None:
    path = write_jsonl(*({"prompt": "p" * n} for n in range(1, 102)))
    assert examine(path).lengths == {"prompt characters": Spread(51, 96, 101)}
    assert examine(path, max_rows=11).lengths == {"prompt characters": Spread(6, 11, 11)}


def test_scored_rows_are_counted_row_by_row(chat: ChatTokenizer, write_jsonl: Write) -> None:
    path = write_jsonl(
        {"prompt": "p", "completions": ["a", "bb", "ccc"], "scores": [1, 2, 3]},
        {"prompt": "q", "completions": ["a", "b"], "scores": [1, 1]},
        {"prompt": "r", "completions": ["a", "b"], "scores": [1]},
    )
    e = examine(path, tokenizer=chat)
    assert (e.type, e.rows, len(e.dropped), e.ties, e.right_steps) == ("scored", 2, 1, 1, None)
    assert e.lengths["completion characters"] == Spread(1, 3, 3)  # of all five
    assert e.lengths["completion tokens"] == Spread(2, 4, 4)
    assert e.lengths["completions"] == Spread(2, 3, 3)
    text = describe(e)
    assert text.startswith("scored, plain; 2 rows; 1 dropped\n")
    assert "1 rows give all completions one score, which orders nothing" in text


def test_stepwise_rows_are_counted_step_by_step(chat: ChatTokenizer, write_jsonl: Write) -> None:
    path = write_jsonl(
        {"prompt": "p", "completions": ["a", "bb", "c"], "labels": [True, True, False]},
        {"prompt": "p", "completions": ["a"], "labels": [True]},
    )
    e = examine(path, tokenizer=chat)
    assert (e.type, e.ties, e.right_steps) == ("stepwise", None, 0.75)
    assert e.lengths["steps"] == Spread(1, 3, 3)
    assert e.lengths["completion tokens"] == Spread(2, 7, 7)
    assert "75.0% of the steps are right" in describe(e)


def test_the_first_line_says_what_it_is(write_jsonl: Write) -> None:
    rows = [{"chosen": talk("q", f"a{i}"), "rejected": talk("q", "b")} for i in range(1200)]
    path = write_jsonl(*rows, *[{"chosen": talk("q", " "), "rejected": talk("q", "b")}] * 7)
    first, second, *_ = describe(examine(path)).splitlines()
    assert first == "preference, conversational, implicit prompt; 1,200 rows; 7 dropped"
    assert second.startswith("  7 dropped: 'chosen' is empty: rows.jsonl:1201, ")
    assert second.endswith("rows.jsonl:1205, ...")


def test_only_pairs_have_a_kind_of_prompt(write_jsonl: Write) -> None:
    text = describe(examine(write_jsonl({"prompt": "p", "completion": "c"})))
    assert text.startswith("prompt-completion, plain; 1 rows; 0 dropped\n")
    assert "chosen" not in text
    assert "dropped:" not in text


def test_tokens_are_counted_and_the_limit_applied(chat: ChatTokenizer, write_jsonl: Write) -> None:
    path = write_jsonl(
        {"prompt": "pp", "completion": "abc"},
        {"prompt": "pp <|im_end|>", "completion": "abc"},
        {"prompt": "p" * 50, "completion": "abc"},
    )
    e = examine(path, tokenizer=chat, max_length=30)
    assert e.rows == 2
    assert e.control_text == 1
    assert e.lengths["prompt tokens"] == Spread(2, 13, 13)
    assert e.lengths["completion tokens"] == Spread(4, 4, 4)
    text = describe(e)
    assert "  1 dropped: longer than max_length 30: rows.jsonl:3 (54 tokens)" in text
    assert "1 rows spell out a control token" in text


def test_the_example_shows_what_is_trained(chat: ChatTokenizer, write_jsonl: Write) -> None:
    path = write_jsonl({"messages": talk("q" * 40, "ok")})
    e = examine(path, tokenizer=chat)
    assert e.example.text.endswith("<|im_start|>assistant\n\n[[ok<|im_end|>]]")
    prompt, answer = e.example.tokens
    assert not any(token.trained for token in prompt)
    assert [(t.token, t.id, t.trained) for t in answer] == [
        ("o", chat.tokenizer.convert_tokens_to_ids("o"), True),
        ("k", chat.tokenizer.convert_tokens_to_ids("k"), True),
        ("<|im_end|>", chat.stop_id, True),
    ]
    table = describe(e).split("trained\n")[-1].splitlines()
    assert len(table) == 8 + 1 + 8 + 1 + 3  # both ends of the prompt, the gap, the answer
    assert table[8] == f"... {len(prompt) - 16} more"
    assert [line.split()[-1] for line in table[-3:]] == ["yes"] * 3
    assert table[0].split() == ["<|im_start|>", str(prompt[0].id), "-"]


def test_the_example_without_a_tokenizer_is_the_text(write_jsonl: Write) -> None:
    e = examine(write_jsonl({"messages": talk("q", "ok")}))
    assert (e.example.text, e.example.tokens) == ("user: q\n[[ok]]", ())
    assert e.example.where == "rows.jsonl:1"


def test_data_without_a_usable_row_is_an_error(chat: ChatTokenizer, write_jsonl: Write) -> None:
    path = write_jsonl({"prompt": "p" * 9})
    with pytest.raises(DataError, match="no row is left"):
        examine(path, tokenizer=chat, max_length=8)
