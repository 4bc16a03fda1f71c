"""What a training stage says of itself: its cached reference, its speed; on screen and on disk."""

from __future__ import annotations

import json

import pytest

from truing.rundir import RunDirectory

PAIRS = [{"prompt": f"p{i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(4)]


def test_the_line_is_the_last_word_of_a_stages_training(run):
    output, said = run(PAIRS, PAIRS, tuned={"method": "sft"}, better={"method": "dpo"})
    lines = [line for line in said.splitlines() if "arithmetic limit" in line]
    assert [line.partition(":")[0] for line in lines] == ["tuned", "better"]
    for line, stage in zip(lines, ("tuned", "better"), strict=True):
        facts = RunDirectory(output / stage).info().facts["speed"]
        fraction = facts["fraction_of_arithmetic_limit"]
        assert line.startswith(f"{stage}: {fraction:.2g} of the arithmetic limit")
        at_limit = sum(sum(parts.values()) for parts in facts["seconds_at_limit"].values())
        assert at_limit / facts["train_seconds"] == pytest.approx(fraction)
        assert ("reference" in facts["flops"]) is (stage == "better")
    summary = json.loads((output / "summary.json").read_text())
    assert [s["fraction_of_arithmetic_limit"] is None for s in summary["stages"]] == [False, False]


def test_a_cached_reference_is_said_and_read_by_the_next_stage(run):
    stage = {"method": "dpo", "reference_logps": "cached", "gradient_checkpointing": True}
    output, said = run(
        PAIRS, PAIRS, first=stage | {"seed": 1}, second=stage | {"seed": 1, "beta": 1}
    )
    lines = [line for line in said.splitlines() if "reference log-probs" in line]
    assert lines[0].startswith("first: reference log-probs of 4 groups computed once, kept in ")
    assert lines[1].startswith("second: reference log-probs read from ")
    for name in ("first", "second"):
        info = RunDirectory(output / name).info()
        assert (info.model_copies, "reference" in info.facts["speed"]["flops"]) == (1, False)
