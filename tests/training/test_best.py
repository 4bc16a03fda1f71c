"""`metric_for_best_model`: the stage leaves the weights that measured best, not the last ones."""

from __future__ import annotations

import io
import json

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import load_file

from truing.config import Offline, check_recipe
from truing.errors import UsageError
from truing.pipeline.run import run_recipe
from truing.training.best import is_greater_better

ROWS = [{"prompt": f"{i}: ", "completion": f" answer {i * 7}"} for i in range(24)]


def left(tmp_path, name, **knobs):
    """(weights at the root, lines of metrics, checkpoint-N -> weights, facts) of a stage whose
    learning rate is far too high."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    stage = {
        "method": "sft",
        "batch_size": 4,
        "max_steps": 5,
        "learning_rate": 0.1,
        "warmup_ratio": 0.0,
    }
    stage |= {"eval_rows": 4, "eval_steps": 1, "save_steps": 1, "save_total_limit": 9, **knobs}
    raw = {
        "name": "t",
        "output": str(tmp_path / name),
        "model": {"path": "random:llama", "dtype": "float32"},
        "data": {"path": str(data), "test_rows": 4},
        "stages": {"sft": stage},
    }
    console = Console(file=io.StringIO())
    recipe = check_recipe(raw, "recipe")
    output = run_recipe(recipe, where="recipe", resume=False, overwrite=False, console=console)
    run = output / "sft"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = {
        int(folder.name.partition("-")[2]): load_file(folder / "model.safetensors")
        for folder in run.glob("checkpoint-*")
    }
    facts = json.loads((run / "run.json").read_text())["facts"]
    return load_file(run / "model.safetensors"), lines, kept, facts


def equal(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("greater", [None, True])
def test_the_best_weights_are_left_and_not_the_last(tmp_path, greater):
    knobs = {"metric_for_best_model": "eval/loss", "greater_is_better": greater}
    weights, lines, kept, facts = left(tmp_path, "best", **knobs)
    measured = {line["step"]: line["eval/loss"] for line in lines}
    assert sorted(measured) == [0, 1, 2, 3, 4, 5]
    best = (max if greater else min)(measured, key=measured.get)
    assert facts["best"] == {"value": measured[best], "step": best}
    last = left(tmp_path, "last")[0]
    assert equal(weights, last) is (best == 5)
    if best:
        assert equal(weights, kept[best])
    others = [step for step in kept if step != best]
    assert not any(equal(weights, kept[step]) for step in others)


def test_eval_steps(tmp_path):
    def steps(**knobs):
        lines = left(tmp_path, str(knobs), **knobs)[1]
        return [line["step"] for line in lines if "eval/loss" in line]

    assert steps(eval_steps=2) == [0, 2, 4, 5]
    assert steps(eval_steps=None) == [0, 3, 5]


def test_a_metric_that_is_not_measured_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(UsageError, match="'eval/los' is not measured") as caught:
        left(tmp_path, "wrong", metric_for_best_model="eval/los")
    assert "did you mean 'eval/loss'" in caught.value.remedy
    assert not (tmp_path / "wrong" / "sft" / "metrics.jsonl").exists()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValidationError, match="needs eval_rows"):
        Offline(method="sft", metric_for_best_model="eval/loss")
    with pytest.raises(ValidationError, match="exclude each other"):
        Offline(method="sft", metric_for_best_model="eval/loss", eval_rows=4, ema_decay=0.9)


def test_which_way_is_better():
    assert not is_greater_better("eval/loss", None)
    assert is_greater_better("eval/rewards/accuracies", None)
    assert is_greater_better("eval/loss", asked=True)
