"""Held-out rows a stage cannot take, and stages another cannot take."""

from __future__ import annotations

import pytest

from truing.errors import DataError, UsageError
from truing.rundir import RunDirectory

PAIRS = [{"prompt": f"p{i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(4)]
PROMPTS = [{"prompt": "q1"}, {"prompt": "q2"}]
VERDICTS = [{"prompt": f"p{i}", "completion": f"c{i}", "label": i % 2 == 0} for i in range(4)]
STEPS = [{"prompt": f"p{i}", "completions": ["a", "b"], "labels": [True, False]} for i in range(4)]
ONE_PROMPT = [row | {"prompt": "p"} for row in VERDICTS]


@pytest.mark.parametrize(
    ("method", "train", "test", "why"),
    [
        ("bradley_terry", PAIRS, PROMPTS, "needs preference rows, these are prompt-only"),
        ("kto", VERDICTS, ONE_PROMPT, "all prompts are the same"),
    ],
)
def test_held_out_rows_that_will_not_do_are_left_out_and_it_is_said(run, method, train, test, why):
    output, said = run(train, test, stage={"method": method, "eval_rows": 2})
    (line,) = [line for line in said.splitlines() if "left out" in line]
    assert line.startswith("stage: held-out rows are left out")
    assert why in line
    directory = RunDirectory(output / "stage")
    assert not any(name.startswith("eval/") for row in directory.metrics() for name in row)
    if method == "bradley_terry":
        assert directory.info().facts["reward_model"]["accuracy"] is None


def test_held_out_pairs_without_the_margin_are_found_early_if_they_are_measured(run):
    train = [row | {"margin": 1.0} for row in PAIRS]
    stage = {"method": "bradley_terry", "margin_coef": 1.0}
    with pytest.raises(DataError, match="reads 'margin', and 2 of 2 rows have none"):
        run(train, PAIRS, stage=stage | {"eval_rows": 2})
    output, _ = run(train, PAIRS, stage=stage)
    judged = RunDirectory(output / "stage").info().facts["reward_model"]
    assert (judged["accuracy"]["n"], judged["unit"]) == (4, "pairs")


def test_kto_on_one_prompt_is_refused_before_weights_are_loaded(run, tmp_path):
    with pytest.raises(DataError, match="all prompts are the same"):
        run(ONE_PROMPT, VERDICTS, stage={"method": "kto"})
    assert not (tmp_path / "out").exists()


def test_a_process_reward_is_no_reward_of_completions(run):
    with pytest.raises(UsageError, match="names 'steps', which makes step rewards, not reward"):
        run(
            STEPS,
            STEPS,
            steps={"method": "process_reward"},
            ppo={"method": "ppo", "reward": "steps"},
        )
