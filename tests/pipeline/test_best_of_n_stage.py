"""The best_of_n stage: the rows it picks, its curve, and that every knob changes it."""

from __future__ import annotations

import io
import json
import math
from statistics import NormalDist, fmean, stdev

import pytest
from rich.console import Console

from truing.config import check_recipe
from truing.pipeline.run import run_recipe
from truing.rundir import RunDirectory

ROWS = [
    {
        "prompt": [{"role": "user", "content": text}],
        "completion": [{"role": "assistant", "content": "a"}],
    }
    for text in ("one", "two", "three", "four", "five", "six")
]
VOWELS = {"name": "character_share", "characters": "aeiou"}
LETTERS = {"name": "character_share", "characters": "abcdefghijklm"}
STAGE = {
    "method": "best_of_n",
    "reward": VOWELS,
    "num_generations": 6,
    "max_completion_length": 5,
    "seed": 3,
}


@pytest.fixture
def drawn(tmp_path):
    """Run one best_of_n stage; (its rows, its curve, its facts)."""
    for name, rows in (("train", ROWS[:2]), ("test", ROWS[2:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def drawn(**knobs):
        raw = {
            "name": "small",
            "output": str(tmp_path / "out"),
            "model": {"path": "random:llama", "dtype": "float32"},
            "data": {"path": f"{tmp_path}/train.jsonl", "test_path": f"{tmp_path}/test.jsonl"},
            "stages": {"best": STAGE | knobs},
        }
        console = Console(file=io.StringIO())
        recipe = check_recipe(raw, "recipe")
        fresh = not (tmp_path / "out").exists()
        output = run_recipe(
            recipe, where="recipe", resume=False, overwrite=not fresh, console=console
        )
        directory = RunDirectory(output / "best")
        found = json.loads((directory.path / "eval" / "best_of_n.json").read_text())
        return directory.rows("samples/best.jsonl"), found, directory.info().facts

    return drawn


def test_the_curve_of_one_pool(drawn):
    rows, found, facts = drawn(gold=LETTERS)
    assert [p["n"] for p in found["points"]] == [1, 2, 3, 4, 5, 6]
    assert (found["prompts"], found["prompts_left_out"]) == (4, 0)
    first, last = found["points"][0], found["points"][-1]
    means, scores = [row["mean_score"] for row in rows], [row["score"] for row in rows]
    assert first["proxy"]["mean"] == pytest.approx(fmean(means))
    assert last["proxy"]["mean"] == pytest.approx(fmean(scores))
    half = NormalDist().inv_cdf(0.975) * stdev(scores) / math.sqrt(4)
    assert last["proxy"]["high"] - last["proxy"]["mean"] == pytest.approx(half)
    proxies = [p["proxy"]["mean"] for p in found["points"]]
    assert proxies == sorted(proxies)
    for point in found["points"]:
        n = point["n"]
        assert point["kl_bound"] == pytest.approx(math.log(n) - (n - 1) / n)
        assert point["kl_estimate"]["mean"] <= point["kl_bound"] + 1e-9
        assert 0 <= point["gold"]["mean"] <= 1
    assert facts["kl_bound"] == last["kl_bound"]
    picked = [sum(c in "aeiou" for c in row["completion"]) for row in rows]
    assert [row["score"] * len(row["completion"]) for row in rows] == pytest.approx(picked)


def test_gold_only_looks_on(drawn):
    rows, with_gold, _ = drawn(gold=LETTERS)
    again, without, _ = drawn()
    assert rows == again
    assert all(p["gold"] is None for p in without["points"])
    assert [p["proxy"] for p in without["points"]] == [p["proxy"] for p in with_gold["points"]]
    assert [p["gold"] for p in with_gold["points"]] != [p["proxy"] for p in with_gold["points"]]
    same = drawn(gold=VOWELS)[1]
    assert [p["gold"] for p in same["points"]] == [p["proxy"] for p in same["points"]]


@pytest.mark.parametrize(
    "knob",
    [
        {"num_generations": 2},
        {"seed": 4},
        {"reward": LETTERS},
        {"max_completion_length": 2},
        {"temperature": 3.0},
        {"test_prompts": 2},
    ],
    ids=lambda knob: next(iter(knob)),
)
def test_every_knob_changes_what_is_picked(drawn, knob):
    rows, found, _ = drawn()
    others, other, _ = drawn(**knob)
    assert others != rows
    if knob == {"num_generations": 2}:
        assert len(other["points"]) == 2
        assert other["points"][-1]["proxy"]["mean"] <= found["points"][-1]["proxy"]["mean"]
    if knob == {"test_prompts": 2}:
        assert (len(others), other["prompts"]) == (2, 2)
        assert others == rows[:2]
