"""Rows that cannot be used: refused at their line, or left out, and then said which; what comes
out is what the other rows give, bit for bit."""

from __future__ import annotations

import json
import math

import pytest
from bad_data import BAD, DROP, PAIR, Memory, as_without, facts, left_out, mixed
from harness import (
    ROWS,
    Result,
    fire,
    left_by,
    nothing_half_written,
    stage_folder,
    stopped,
    succeeded,
    truing,
    written,
)

from faults.matrix import EVERY, SAMPLING, TRAINED
from truing.rundir import read_jsonl

every_stage = pytest.mark.parametrize("stage", EVERY)
IN_THE_FILE = [name for name in BAD if name != "half a character"]
KINDS = {
    "D1": IN_THE_FILE[:5],
    "D2": IN_THE_FILE[5:9],
    "D3": IN_THE_FILE[9:11],
    "D4": IN_THE_FILE[11:12],
    "D5": IN_THE_FILE[12:],
}
GROWTH = 200
"""MiB. A run without such rows grows by 70; ids of ten megabytes take 2,000."""


def refused(result: Result, out, *words: str) -> None:
    """Before any work, for the data."""
    stopped(result, 3, *words)
    assert not out.exists()


@pytest.fixture(scope="session")
def run_without(tmp_path_factory):
    """stage -> (folder, name of a bad row -> its place, memory) of one run over all bad rows."""
    known = {}

    def of(stage):
        if stage not in known:
            folder = tmp_path_factory.mktemp("without") / "out"
            rows = [BAD[name][0] for name in IN_THE_FILE]
            data, places = mixed(folder.parent / "rows.jsonl", rows)
            memory = Memory()
            succeeded(truing(stage, folder, *DROP, data=data, during=memory))
            known[stage] = folder, dict(zip(IN_THE_FILE, places, strict=True)), memory
        return known[stage]

    return of


@pytest.mark.parametrize(
    ("stage", "kind"),
    [
        pytest.param(stage, kind, marks=pytest.mark.fault(kind, stage))
        for kind in KINDS
        for stage in (("reward", "dpo") if kind == "D4" else EVERY)
    ],
)
def test_bad_rows_are_left_out_and_declared(stage, kind, run_without, whole):
    out, places, memory = run_without(stage)
    declared = left_out(stage, out)
    assert {places[name]: BAD[name][1] for name in KINDS[kind]}.items() <= declared.items()
    assert len(declared) == len(IN_THE_FILE)
    as_without(stage, out, whole(stage))
    nothing_half_written(out)
    if kind == "D5":
        assert memory.grown < GROWTH


@pytest.mark.parametrize("name", ["null", *(pytest.param(n, marks=pytest.mark.full) for n in BAD)])
@pytest.mark.fault("D1")
@every_stage
def test_a_bad_row_stops_the_run_at_its_line(stage, name, out):
    row, reason = BAD[name]
    data, (place,) = mixed(out.parent / "rows.jsonl", [row])
    result = truing(stage, out, data=data)
    refused(result, out, "1 of 21 rows cannot be used", f"{place}: {reason}", "data.bad_rows=drop")


TALK = [
    {
        "prompt": [{"role": "user", "content": f"Number {i}?"}],
        "chosen": [{"role": "assistant", "content": f"good {i}"}],
        "rejected": [{"role": "assistant", "content": f"bad {i} bad"}],
    }
    for i in range(20)
]
WRONG_ROLES = {
    "'chosen' is not one assistant message": TALK[0] | {"chosen": [TALK[0]["prompt"][0]]},
    "'prompt' has a role that is none of: ": TALK[0] | {"prompt": [{"role": "x", "content": "y"}]},
    "'prompt' has a message without role and content": TALK[0] | {"prompt": [["user", "x"]]},
    "'rejected' is empty": TALK[0] | {"rejected": []},
    "one of chosen and rejected is a conversation": TALK[0] | {"rejected": "text"},
}


@pytest.mark.full
@pytest.mark.fault("D1")
@every_stage
def test_wrong_turns_of_conversations(stage, out):
    data, places = mixed(out.parent / "rows.jsonl", list(WRONG_ROLES.values()), TALK)
    succeeded(truing(stage, out, *DROP, data=data))
    for place, reason in zip(places, WRONG_ROLES, strict=True):
        assert left_out(stage, out)[place].startswith(reason)
    alone = out.parent / "alone"
    succeeded(truing(stage, alone, data=written(out.parent / "talk.jsonl", TALK)))
    as_without(stage, out, left_by(stage, alone))


@pytest.mark.full
@pytest.mark.fault("D1")
@every_stage
def test_nothing_but_bad_rows(stage, out):
    data = written(out.parent / "rows.jsonl", [BAD["no completion"][0]] * 30)
    refused(truing(stage, out, *DROP, data=data), out, "30 of 30 rows", "and 25 more", "no row")


@pytest.mark.full
@pytest.mark.fault("D1")
@every_stage
def test_more_bad_rows_than_places_are_named(stage, out):
    data = out.parent / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, *[BAD["null"][0]] * 30]))
    succeeded(truing(stage, out, *DROP, data=data))
    (rows,) = facts(stage, out)["dropped_rows"]["data"].values()
    assert rows == {"rows": 30, "places": [f"rows.jsonl:{n}" for n in range(21, 41)]}


@pytest.mark.full
@pytest.mark.fault("D3")
@pytest.mark.parametrize("stage", SAMPLING)
def test_prompts_that_leave_no_room_for_an_answer(stage, out):
    """They fit the model, and the tokens that would be drawn behind them do not."""
    all_of_them = ("--test-prompts", "30") if stage == "best_of_n" else ("--data.test-rows", "0")
    fits = {"prompt": "x" * (512 - 6), "chosen": "a", "rejected": "b"}
    data, (place,) = mixed(out.parent / "rows.jsonl", [fits | {"prompt": "x" * (512 - 5)}])
    what = f"{place}: no room for 6 tokens of a completion in 512 places (507 tokens)"
    refused(truing(stage, out, *all_of_them, data=data), out, what, "max_completion_length")
    succeeded(truing(stage, out, *all_of_them, *DROP, data=data))
    assert list(left_out(stage, out)) == [place]
    alone = out.parent / "alone"
    succeeded(truing(stage, alone, *all_of_them, data=written(out.parent / "good.jsonl", ROWS)))
    as_without(stage, out, left_by(stage, alone))
    data, _ = mixed(out.parent / "rows.jsonl", [fits])
    succeeded(truing(stage, out, *all_of_them, "--overwrite", data=data))


@pytest.mark.fault("D4")
@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_repeated_and_contradictory_pairs_are_declared(stage, out):
    """They are trained on: which of two people is right is not for a machine to say."""
    other_way = ROWS[1] | {"chosen": ROWS[1]["rejected"], "rejected": ROWS[1]["chosen"]}
    data = written(out.parent / "rows.jsonl", [*ROWS, ROWS[0], other_way])
    result = succeeded(truing(stage, out, data=data))
    told = facts(stage, out)
    assert told["doubtful_rows"]["data"] == {
        "repeat an earlier row word for word": {"rows": 1, "places": ["rows.jsonl:21"]},
        "prefer what another row rejects": {
            "rows": 2,
            "places": ["rows.jsonl:2", "rows.jsonl:22"],
        },
    }
    assert sum(told["rows"]["data"].values()) == 22
    assert not told["dropped_rows"]
    assert "2 rows prefer what another row rejects: rows.jsonl:2, rows.jsonl:22" in result.said


def let_identical_pairs_pass() -> None:
    """Each rejected completion becomes the chosen one behind every check of the data."""
    from dataclasses import replace

    from truing.pipeline.context import Context

    encode = Context.encode

    def then(self, groups):
        fire()
        return [
            replace(group, completions=(group.completions[0],) * 2)
            for group in encode(self, groups)
        ]

    Context.encode = then


@pytest.mark.fault("D4")
@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_an_identical_pair_teaches_nothing(stage, out):
    """Why it is left out: its gradient is rounding alone, which AdamW would scale up to steps."""
    succeeded(truing(stage, out, plant=[let_identical_pairs_pass]))
    lines = list(read_jsonl(stage_folder(stage, out) / "metrics.jsonl"))
    assert len(lines) == 8
    for line in lines:
        assert line["loss"] == pytest.approx(math.log(2), abs=1e-7)
        assert line["grad_norm"] < 1e-6  # 4 with ordinary pairs


def fold_case() -> None:
    """A tokenizer to which A and a are the same."""
    from truing.data.chat import ChatTokenizer

    ids = ChatTokenizer._text_ids

    def then(self, text):
        fire()
        return ids(self, text.lower())

    ChatTokenizer._text_ids = then


@pytest.mark.full
@pytest.mark.fault("D4")
@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_pairs_of_the_same_tokens_are_no_pairs(stage, out):
    data, (place,) = mixed(out.parent / "rows.jsonl", [PAIR | {"chosen": "A", "rejected": "a"}])
    result = truing(stage, out, data=data, plant=[fold_case])
    refused(result, out, f"{place}: chosen and rejected are the same tokens")


@pytest.mark.fault("D10")
@every_stage
def test_no_rows(stage, out):
    data = out.parent / "none.jsonl"
    data.write_bytes(b"\n  \n")
    refused(truing(stage, out, data=data), out, "there are no rows")


NOTHING_HELD_OUT = ("--data.test-rows", "0")


@pytest.mark.parametrize("rows", [1, pytest.param(3, marks=pytest.mark.full)])
@pytest.mark.fault("D10")
@pytest.mark.parametrize("stage", TRAINED[:3])
def test_fewer_rows_than_a_batch(stage, rows, out):
    """As with a batch of that many: nothing is added, repeated or left out."""
    data = written(out.parent / "few.jsonl", ROWS[:rows])
    succeeded(truing(stage, out, *NOTHING_HELD_OUT, data=data))
    exact = out.parent / "exact"
    size = ("--batch-size", str(rows))
    succeeded(truing(stage, exact, *NOTHING_HELD_OUT, *size, data=data))
    as_without(stage, out, left_by(stage, exact))
    assert facts(stage, out)["rows"]["data"] == {"train": rows, "test": 0}


@pytest.mark.parametrize("rows", [1, pytest.param(3, marks=pytest.mark.full)])
@pytest.mark.fault("D10")
@pytest.mark.parametrize("stage", SAMPLING)
def test_fewer_prompts_than_a_rollout(stage, rows, out, whole):
    """Every rollout is full, of these prompts; the steps are as many as asked for."""
    data = written(out.parent / "few.jsonl", ROWS[:rows])
    held_out = () if stage == "best_of_n" else NOTHING_HELD_OUT
    succeeded(truing(stage, out, *held_out, data=data))
    samples = (stage_folder(stage, out) / "samples").glob("*.jsonl")
    drawn = [row["prompt"] for file in samples for row in read_jsonl(file)]
    assert set(drawn) == {row["prompt"] for row in ROWS[:rows]}
    if stage == "best_of_n":
        assert len(drawn) == rows
    else:
        assert left_by(stage, out).keys() == whole(stage).keys()
