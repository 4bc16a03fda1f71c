"""The evaluate stage: what may stand in one table, and what a number may not claim."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console

from truing.config import check_recipe
from truing.errors import DataError, UsageError
from truing.models.network import Network
from truing.pipeline.run import run_recipe
from truing.rundir import RunDirectory

ROWS = [{"prompt": f"Number {i}: ", "completion": "yes"} for i in range(4)]
LOOK = {"method": "evaluate", "policies": {"base": "model"}, "reference": "model"}
LOOK |= {"max_completion_length": 5, "gold": "character_share"}
BEST = {"method": "best_of_n", "reward": "character_share", "num_generations": 3}
BEST |= {"max_completion_length": 5}
TUNED = {"method": "sft", "max_steps": 3, "num_train_epochs": 3, "learning_rate": 1e-2}


@pytest.fixture
def looked(run):
    """Stages -> the rows of stage `look`, by label."""

    def looked(**stages):
        output = run(ROWS, **stages)
        found = json.loads((output / "look" / "eval" / "policies.json").read_text())
        return {row["label"]: row for row in found["policies"]}

    return looked


@pytest.fixture
def run(tmp_path):
    """Stages on rows that are also held out. Returns the output folder."""

    def run(rows, overwrite=False, **stages):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        raw = {
            "name": "small",
            "output": str(tmp_path / "out"),
            "model": {"path": "random:llama", "dtype": "float32"},
            "data": {"path": str(file), "test_path": str(file)},
            "stages": stages,
        }
        console = Console(file=io.StringIO(), width=200)
        recipe = check_recipe(raw, "recipe")
        return run_recipe(
            recipe, where="recipe", resume=False, overwrite=overwrite, console=console
        )

    return run


@pytest.mark.parametrize(
    ("knobs", "is_one"),
    [({}, True), ({"temperature": 0}, False), ({"top_k": 3}, False), ({"top_p": 0.5}, False)],
)
def test_a_kl_is_only_said_of_texts_that_were_drawn_from_the_policy(looked, knobs, is_one):
    kl = looked(look=LOOK | knobs)["base"]["kl"]
    assert (kl is not None) is is_one


def test_what_does_not_fit_at_once_is_measured_in_halves_and_declared(run, monkeypatch):
    """The reward model's scores and the KL are those of whole batches, to rounding."""
    model = {"method": "bradley_terry", "max_steps": 1}
    look = LOOK | {"proxy": "judge", "policies": {"base": "model", "tuned": "tuned"}}
    stages = {"judge": model, "tuned": TUNED, "look": look}
    pairs = [{"prompt": r["prompt"], "chosen": "yes", "rejected": "no"} for r in ROWS]
    whole, forward = measured(run(pairs, **stages)), Network.forward
    assert "memory_halved" not in whole["facts"]

    def small(self, batch, **asked):
        if not torch.is_grad_enabled() and batch.size_G > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch, **asked)

    monkeypatch.setattr(Network, "forward", small)
    halved = measured(run(pairs, **stages, overwrite=True))
    assert halved["facts"]["memory_halved"] > 0
    assert whole["kl"]["mean"] != 0
    for name in ("proxy", "kl"):
        assert halved[name] == pytest.approx(whole[name], abs=1e-5)


def measured(output):
    """The last row of stage `look`, and what its run declares."""
    found = json.loads((output / "look" / "eval" / "policies.json").read_text())["policies"]
    return found[-1] | {"facts": RunDirectory(output / "look").info().facts}


@pytest.mark.parametrize(
    ("best", "look", "is_one"),
    [
        ({}, {}, True),
        ({"from": "other"}, {}, False),
        ({"from": "other"}, {"reference": "other", "policies": {"base": "other"}}, True),
        ({"temperature": 0.7}, {}, False),
        ({"temperature": 0.7}, {"temperature": 0.7}, True),
        ({"top_p": 0.9}, {}, False),
    ],
)
def test_best_of_n_is_bounded_by_its_own_sampler_alone(looked, best, look, is_one):
    """log n − (n − 1)/n says nothing of the KL to anything else."""
    stages = {"other": {"method": "sft", "max_steps": 1}} if "other" in str((best, look)) else {}
    chosen = LOOK | look
    chosen["policies"] = chosen["policies"] | {"best": "best"}
    found = looked(**stages, best=BEST | best, look=chosen)
    assert (found["best"]["kl_bound"] is not None) is is_one


@pytest.mark.parametrize(
    "change", [{"gold": "repetition"}, {"proxy": "vader"}, {"reference": "other"}, {}]
)
def test_two_stages_that_do_not_fit_into_one_table_are_refused(run, change):
    """Also two rows of one label."""
    policies = {"again" if change else "base": "model", "other": "other"}
    more = LOOK | {"policies": policies} | change
    with pytest.raises(UsageError, match=r"stages.look and stages.more go into one table"):
        run(ROWS, other={"method": "sft"}, look=LOOK, more=more)
    if not change:
        fits = LOOK | {"policies": {"again": "model"}}
        output = run(ROWS, look=LOOK, more=fits)
        rows = json.loads((output / "summary.json").read_text())["policies"]
        assert [row["label"] for row in rows] == ["base", "again"]


def test_all_right_or_all_wrong_is_not_certain(looked, tmp_path):
    file = tmp_path / "one.py"
    file.write_text("def never(completions, **kwargs):\n    return [0.0] * len(completions)\n")
    gold = looked(look=LOOK | {"gold": f"{file}:never"})["base"]["gold"]
    assert gold["mean"] == gold["low"] == 0.0
    assert 0.3 < gold["high"] < 0.6  # Wilson: none of 4 right


def test_texts_with_unusual_ends_of_lines_come_back(tmp_path):
    """U+2028 and its kin end no line of a file of rows."""
    directory = RunDirectory(tmp_path)
    rows = [{"text": "a\u2028b\u2029c\u0085d\x0be\r\nf"}, {"text": "g"}]
    directory.write_rows("rows.jsonl", rows)
    assert directory.rows("rows.jsonl") == rows
    directory.append_metrics(1, {"loss": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert directory.metrics() == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize(
    "stage",
    [
        LOOK | {"max_completion_length": 505},
        BEST | {"max_completion_length": 505},
        {"method": "rloo", "reward": "character_share", "max_completion_length": 505},
        {"method": "preferences", "annotator": "character_share", "max_completion_length": 505},
    ],
)
def test_more_tokens_than_the_model_has_places_for_are_refused_early(run, tmp_path, stage):
    with pytest.raises(DataError, match=r"no room for 505 tokens .* 512 places \(10 tokens\)"):
        run(ROWS, stage=stage)
    assert not (tmp_path / "out").exists()
    long = [{"prompt": "p" * 600, "completion": "c"}]
    with pytest.raises(DataError, match="longer than max_length 512"):
        run(long, stage={"method": "sft"})
