from __future__ import annotations

from truing.data.declared import CONTRADICTED, REPEATED, by_reason, declared, doubtful
from truing.data.formats import Dropped, parse_rows
from truing.data.readers import Row


def groups(*values):
    rows = [Row(value, f"a:{number}") for number, value in enumerate(values, 1)]
    return parse_rows(rows).groups


def verdict(label, prompt="p"):
    return {"prompt": prompt, "completion": "c", "label": label}


def test_verdicts_that_deny_each_other():
    rows = groups(verdict(True), verdict(False), verdict(True, "q"), verdict(True))
    assert doubtful(rows) == {REPEATED: ["a:4"], CONTRADICTED: ["a:1", "a:2", "a:4"]}


def test_a_pair_is_no_contradiction_of_another_prompts_pair():
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    other = {"prompt": "q", "chosen": "b", "rejected": "a"}
    assert doubtful(groups(pair, other)) == {}


def test_the_most_frequent_reason_comes_first_and_counts_are_of_all_rows():
    dropped = [Dropped("a:1", "x", "7 tokens"), *(Dropped(f"a:{n}", "y") for n in range(2, 32))]
    assert declared(by_reason(dropped)) == {
        "y": {"rows": 30, "places": [f"a:{n}" for n in range(2, 22)]},
        "x": {"rows": 1, "places": ["a:1 (7 tokens)"]},
    }
    assert list(by_reason(dropped)) == ["y", "x"]
