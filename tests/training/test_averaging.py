"""`ema_decay`: the stage leaves the average of its weights, and trains as if there were none."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from test_step import LORAS, built

from truing.config import check_recipe
from truing.pipeline.run import run_recipe
from truing.pipeline.stages import train as stages
from truing.rundir import RunDirectory
from truing.training.build import build
from truing.training.loop import measure

DECAY, STEPS = 0.7, 3


def copies(masters):
    return {name: p.detach().double().clone() for name, p in masters.masters.items()}


def averaged(start, seen, decay=DECAY):
    """average <- decay · average + (1 − decay) · weights, from the weights of the start."""
    average = start
    for weights in seen:
        average = {n: decay * average[n] + (1 - decay) * weights[n] for n in average}
    return average


def walked(method, lora=None, dtype="float32", **knobs):
    """(stage after three steps, weights at the start, weights after each step)."""
    stage = built(method, lora, dtype, max_steps=STEPS, warmup_ratio=0.0, **knobs)
    start, seen = copies(stage.step.masters), []
    for work in stage.source:
        stage.step(work.micro_batches, work.metrics)
        seen.append(copies(stage.step.masters))
    assert len(seen) == STEPS
    return stage, start, seen


CASES = [("sft", None, "float32"), ("ppo", "lora", "float32"), ("dpo", None, "bfloat16")]


@pytest.mark.parametrize(("method", "lora", "dtype"), CASES)
def test_after_three_steps_it_is_the_average_by_hand(method, lora, dtype):
    more = {"num_train_epochs": 3}
    stage, start, seen = walked(method, LORAS.get(lora), dtype, ema_decay=DECAY, **more)
    expected = averaged(start, seen)
    for name, average in stage.average.averages.items():
        assert average.dtype == torch.float32
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-5, atol=1e-6)
    stage.average.adopt()
    for name, master in stage.step.masters.masters.items():
        torch.testing.assert_close(master.double(), expected[name], rtol=1e-5, atol=1e-6)
        computing = stage.step.masters.computing[name]
        assert torch.equal(computing, master.to(computing.dtype))
    assert any((expected[n] - seen[-1][n]).abs().max() > 1e-4 for n in expected)


def test_training_itself_does_not_see_it():
    plain, _, weights = walked("sft", num_train_epochs=3)
    _, _, same = walked("sft", num_train_epochs=3, ema_decay=0.999)
    assert plain.average is None
    for ours, theirs in zip(weights, same, strict=True):
        for name, weight in ours.items():
            assert torch.equal(weight, theirs[name])


def test_a_larger_decay_lags_more():
    """Measured as the distance to the last weights and to the first."""
    lags = []
    for decay in (0.1, 0.7, 0.99):
        stage, start, seen = walked("sft", num_train_epochs=3, ema_decay=decay)
        found = stage.average.averages

        def distance(to, found=found):
            return sum((found[n].double() - to[n]).square().sum().item() for n in to)

        lags.append((distance(seen[-1]), -distance(start)))
    assert lags == sorted(lags)
    assert lags[0][0] < lags[1][0] < lags[2][0]


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["full", "lora"])
def test_the_folder_holds_the_average(lora, tmp_path, monkeypatch):
    """Through the pipeline: what is saved is the average of the weights after each step."""
    kept = {}

    def watched(method, inputs):
        stage = build(method, inputs)
        masters = stage.step.masters
        kept.update(start=copies(masters), seen=[])
        kept["measured"] = lambda: measure(stage.step, stage.heldout)["eval/loss"]
        stage.step.after_update.append(lambda taken: kept["seen"].append(copies(masters)))
        return stage

    monkeypatch.setattr(stages, "build", watched)
    rows = [{"prompt": f"p{i}", "completion": f" yes {i}"} for i in range(6)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {
        "method": "sft", "max_steps": STEPS, "batch_size": 2, "learning_rate": 1e-2,
        "warmup_ratio": 0.0, "ema_decay": DECAY, "eval_rows": 2 if lora is None else 0,
    }  # fmt: skip
    raw = {
        "name": "small",
        "output": str(tmp_path / "out"),
        "model": {"path": "random:llama", "dtype": "float32", "lora": lora},
        "data": {"path": str(data), "test_path": str(data)},
        "stages": {"tuned": stage},
    }
    console = Console(file=io.StringIO(), width=200)
    recipe = check_recipe(raw, "recipe")
    output = run_recipe(recipe, where="recipe", resume=False, overwrite=False, console=console)
    assert len(kept["seen"]) == STEPS
    expected = averaged(kept["start"], kept["seen"])
    file = "model.safetensors" if lora is None else "adapter/adapter_model.safetensors"
    own = {n.removeprefix("base.").replace(".default.", "."): w for n, w in expected.items()}
    saved = load_file(output / "tuned" / file)
    saved = {name.removeprefix("base_model.model."): weight for name, weight in saved.items()}
    assert saved.keys() == own.keys()
    # the last held-out number is the average's, which is kept, not that of the last weights
    if lora is None:
        last = RunDirectory(output / "tuned").metrics()[-1]["eval/loss"]
        assert last == pytest.approx(kept["measured"](), rel=1e-5)
    for name, weight in saved.items():
        torch.testing.assert_close(weight.double(), own[name], rtol=1e-5, atol=1e-6)
    assert any((expected[n] - kept["seen"][-1][n]).abs().max() > 1e-4 for n in expected)
