"""The whole graph on a tiny model: what it finds, what it leaves, what a second run does."""

from __future__ import annotations

import json
import math

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import truing
from truing.evaluation.report import write_report
from truing.rundir import RunDirectory

STAGES = ("pairs", "sft", "reward", "ppo", "dpo", "best_of_n", "evaluate")


def test_first_steps_are_exact(tiny_run):
    first = tiny_run[0].first_step
    assert first["dpo"]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["ppo"]["val/ratio"] == 1.0
    assert first["ppo"]["objective/kl"] == 0.0


def test_every_policy_is_measured_with_intervals(tiny_run):
    summary, _ = tiny_run
    assert [p.label for p in summary.policies] == ["base", "sft", "ppo", "dpo", "best-of-8"]
    rows = {p.label: p for p in summary.policies}
    assert rows["sft"].kl.mean == 0.0
    assert rows["sft"].gold_gain is None
    assert rows["ppo"].kl.mean > 0
    assert rows["best-of-8"].kl is None
    assert rows["best-of-8"].kl_bound == pytest.approx(1.204442, abs=1e-6)
    for row in rows.values():
        assert row.gold.low <= row.gold.mean <= row.gold.high
        assert row.gold.n == 32
    # the reward model was optimised, so its own score must have risen
    assert rows["best-of-8"].proxy_gain.low > 0
    assert summary.verdicts


def test_the_annotators_scores_stay_with_the_annotator(tiny_run):
    """Pairs hold choices; no stage but the annotator and the last sees a score."""
    _, output = tiny_run
    for split in ("train", "test"):
        rows = RunDirectory(output / "pairs").rows(f"{split}.jsonl")
        assert rows
        for row in rows:
            assert "score" not in json.dumps(row)
            assert row["chosen"] != row["rejected"]
    train = {r["prompt"][-1]["content"] for r in RunDirectory(output / "pairs").rows("train.jsonl")}
    test = {r["prompt"][-1]["content"] for r in RunDirectory(output / "pairs").rows("test.jsonl")}
    assert train.isdisjoint(test)


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_leaves_its_own_run_directory(tiny_run, stage):
    _, output = tiny_run
    run = RunDirectory(output / stage)
    info = run.info()
    assert info.status == "completed"
    assert info.wall_seconds > 0
    assert info.peak_memory_bytes > 0
    assert info.fingerprint
    assert info.versions["torch"] == torch.__version__
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert config["method"] == info.method
    if stage in ("sft", "reward", "ppo", "dpo"):
        steps = [row["step"] for row in run.metrics() if row["step"]]
        assert steps == list(range(1, info.steps + 1))
        assert all(math.isfinite(v) for row in run.metrics() for v in row.values())
        assert any((run.path / "samples").iterdir())
        assert not list(run.path.rglob("*.bin"))
    if stage == "ppo":
        assert info.parents == {"from": "sft", "data": "data", "reward": "reward"}


@pytest.mark.parametrize("stage", ["sft", "ppo", "dpo"])
def test_policies_open_with_from_pretrained(tiny_run, stage):
    folder = tiny_run[1] / stage
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    assert model(ids).logits.shape[-1] == len(tokenizer)
    first, second = (AutoModelForCausalLM.from_pretrained(tiny_run[1] / s) for s in ("sft", stage))
    same = all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert same is (stage == "sft")


def test_the_reward_model_opens_as_a_classifier(tiny_run):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_run[1] / "reward")
    assert model.config.num_labels == 1
    assert model.config.pad_token_id != model.config.eos_token_id


def test_a_second_run_with_resume_repeats_nothing_and_overwrite_repeats_exactly(
    tiny_run, root, monkeypatch, tmp_path
):
    monkeypatch.chdir(root)
    summary, output = tiny_run
    before = {p: p.stat().st_mtime_ns for p in output.glob("*/run.json")}
    again = truing.run("recipes/tiny.yaml", f"output={output}", resume=True, quiet=True)
    assert {p: p.stat().st_mtime_ns for p in output.glob("*/run.json")} == before
    assert again.policies == summary.policies
    with pytest.raises(truing.TruingError, match="not empty"):
        truing.run("recipes/tiny.yaml", f"output={output}", quiet=True)


def test_resume_reruns_what_changed_and_what_hangs_on_it(tiny_run, root, monkeypatch, tmp_path):
    import shutil

    monkeypatch.chdir(root)
    output = tmp_path / "copy"
    shutil.copytree(tiny_run[1], output)
    before = {p.parent.name: p.read_bytes() for p in output.glob("*/run.json")}
    truing.run(
        "recipes/tiny.yaml",
        f"output={output}",
        "stages.dpo.beta=0.3",
        "stages.dpo.max_steps=2",
        resume=True,
        quiet=True,
    )
    after = {p.parent.name: p.read_bytes() for p in output.glob("*/run.json")}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"dpo", "evaluate"}


def test_the_report_needs_no_network(tiny_run):
    text = write_report(tiny_run[1]).read_text(encoding="utf-8")
    for forbidden in ('src="http', 'href="http', "@import", "url(http"):
        assert forbidden not in text
    for expected in ("best-of-8", "<svg", "ppo", "dpo"):
        assert expected in text
