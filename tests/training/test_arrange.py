"""Which rows will do, before any weights are loaded."""

from __future__ import annotations

import pytest

from truing.data.formats import parse_rows
from truing.data.readers import Row
from truing.errors import DataError
from truing.training.arrange import check_columns, check_kind, check_rows

DPO = frozenset({"chosen_G", "rejected_G"})
KTO = frozenset({"label_C", "mismatched_C"})
SFT: frozenset[str] = frozenset()
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


def rows(*values):
    return parse_rows([Row(row, f"f:{line}") for line, row in enumerate(values, start=1)]).groups


def refused(groups, needs, words):
    with pytest.raises(DataError, match=words):
        check_rows(groups, needs, "train", "f")


def test_rows_that_leave_nothing_to_imitate_are_refused():
    bad = rows(*[{"prompt": f"p{i}", "completion": "c", "label": False} for i in range(2)])
    refused(bad, SFT, "no answer is left to imitate")
    wrong = rows({"prompt": "p", "completions": ["a", "b"], "labels": [True, False]})
    refused(wrong, SFT, "no answer is left to imitate")
    check_rows(rows({"prompt": "p", "completions": ["a"], "labels": [True]}), SFT, "train", "f")


def test_only_the_answers_that_are_imitated_must_end():
    pair = PAIR | {"chosen_finish": "length"}
    refused(rows(pair), SFT, "every completion to imitate was cut")
    check_rows(rows(pair, PAIR), SFT, "train", "f")
    scored = {"prompt": "p", "completions": ["a", "b"], "scores": [1, 0]}
    refused(rows(scored | {"finishes": ["length", "stop"]}), SFT, "imitate was cut")
    check_rows(rows(scored | {"finishes": ["stop", "length"]}), SFT, "train", "f")


def test_a_baseline_from_other_prompts_needs_two():
    refused(rows(PAIR, PAIR | {"chosen": "c"}), KTO, "all prompts are the same")
    check_rows(rows(PAIR, PAIR | {"prompt": "q"}), KTO, "train", "f")
    check_rows(rows(PAIR), DPO, "train", "f")


def test_pairs_of_either_split_have_the_columns_that_are_read():
    needs = DPO | {"margin_G"}
    half = rows(PAIR | {"margin": 1.0}, PAIR)
    with pytest.raises(DataError, match="reads 'margin', and 1 of 2 rows have none"):
        check_columns(half, needs, "train", "f")
    check_columns(half, DPO, "train", "f")
    check_columns([], needs, "train", "f")
    prompts = rows({"prompt": "p"})
    check_columns(prompts, needs, "train", "f")
    with pytest.raises(DataError, match="needs preference rows, these are prompt-only"):
        check_kind(prompts, needs, "train", "f")
