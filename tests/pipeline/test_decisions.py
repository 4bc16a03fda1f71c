"""What is kept, what goes on, what runs again, and why."""

from __future__ import annotations

import json
import shutil
import signal
from functools import partial

import pytest
from faults_in_recipes import RECIPE, kill_after_step, refused, run, same_files

from truing.pipeline import code_version

ROWS = [
    {"prompt": f"Number {i}: ", "chosen": f" good {i}", "rejected": f" bad {i} bad"}
    for i in range(20)
]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished recipe: sft, then dpo and ppo from it. Never changed."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "recipe.yaml").write_text(RECIPE)
    run(folder)
    return folder


@pytest.fixture
def place(done, tmp_path):
    """A copy of it, to change."""
    return shutil.copytree(done, tmp_path / "place")


def decided(folder, *overrides):
    """Stage -> (action, why), as --dry-run says."""
    said = run(folder, *overrides, "--dry-run").said
    lines = [line for line in said.splitlines() if line.startswith(("keep", "run", "go on", "ref"))]
    found = {}
    for line in lines:
        head, _, why = line.partition("): ")
        action, name = head[:7].strip(), head[7:].split()[0]
        found[name] = (action, why)
    return found


def test_a_dry_run_writes_nothing(done, tmp_path):
    shutil.copy(done / "rows.jsonl", tmp_path)
    shutil.copy(done / "recipe.yaml", tmp_path)
    assert set(decided(tmp_path).values()) == {("run", "not run yet")}
    assert not (tmp_path / "out").exists()


def test_unchanged_stages_are_kept(place):
    assert set(decided(place).values()) == {("keep", "done before")}


def test_only_what_changed_and_its_descendants_run(place):
    found = decided(place, "stages.dpo.beta=0.3")
    assert found["dpo"] == ("run", "changed: beta 0.1 -> 0.3")
    assert found["sft"][0] == found["ppo"][0] == "keep"
    found = decided(place, "stages.sft.learning_rate=0.002")
    assert found["sft"] == ("run", "changed: learning_rate 0.001 -> 0.002")
    assert found["dpo"] == found["ppo"] == ("run", "changed: from (sft)")


def test_another_seed_of_the_recipe_divides_the_rows_anew(place):
    found = decided(place, "seed=9")
    assert found["sft"] == ("run", "changed: data")
    assert found["dpo"] == ("run", "changed: seed, data, from (sft)")


@pytest.mark.parametrize("knob", ["save_steps=2", "save_minutes=1", "save_total_limit=5"])
def test_how_it_is_saved_changes_no_result(place, knob):
    assert decided(place, f"stages.sft.{knob}")["sft"] == ("keep", "done before")


def test_a_higher_limit_changes_no_result_and_a_lower_one_might(place):
    """`done` was made with 0; the message of a step that is not finite advises a larger one."""
    raised = "stages.sft.max_nonfinite_steps=3"
    assert set(decided(place, raised).values()) == {("keep", "done before")}
    shutil.rmtree(place / "out")
    run(place, raised)
    assert decided(place, raised)["sft"][0] == "keep"
    assert decided(place)["sft"] == ("run", "changed: max_nonfinite_steps 3 -> 0")
    assert decided(place)["dpo"] == ("keep", "done before")


def test_a_config_that_is_gone_or_damaged_is_said_and_made_again(place):
    config = place / "out" / "dpo" / "config.yaml"
    for text in ("beta: [", "just words", "\x00"):
        config.write_text(text)
        assert decided(place)["dpo"][1].startswith("damaged: ")
    config.unlink()
    assert decided(place)["dpo"][1].startswith("damaged: ")
    assert decided(place, "stages.dpo.beta=0.3")["dpo"] == ("run", "changed: config")


def test_edited_rows_change_all_and_moved_ones_nothing(place):
    (place / "rows.jsonl").rename(place / "moved.jsonl")
    assert set(decided(place, "data.path=moved.jsonl").values()) == {("keep", "done before")}
    edited = (place / "moved.jsonl").read_text().replace("good 7", "good seven")
    (place / "rows.jsonl").write_text(edited)
    assert decided(place)["sft"] == ("run", "changed: data")


def test_damaged_results_are_made_again_and_said(place):
    weights = place / "out" / "dpo" / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    action, why = decided(place)["dpo"]
    assert action == "run"
    assert why.startswith("damaged: ")
    assert "model.safetensors: its SHA-256" in why
    said = run(place, "--resume").said
    assert "[1/3] sft (sft): done before, kept" in said
    assert "runs again, damaged" in said
    assert weights.read_bytes() == before


def test_an_interrupted_graph_goes_on_where_it_stopped(done, tmp_path):
    for name in ("rows.jsonl", "recipe.yaml"):
        shutil.copy(done / name, tmp_path)
    fault = partial(kill_after_step, 3, "dpo")
    killed = run(tmp_path, code=-signal.SIGKILL, plant=[fault])
    assert killed.fired
    found = decided(tmp_path)
    assert found["sft"] == ("keep", "done before")
    assert found["dpo"][0] == "go on"
    assert found["dpo"][1].startswith("from checkpoint-")
    assert found["ppo"] == ("run", "not run yet")
    said = run(tmp_path, "--resume").said
    assert f"goes on {found['dpo'][1]}" in said
    same_files(tmp_path / "out", done / "out")


def test_a_stopped_stage_is_not_thrown_away_for_a_changed_knob(done, tmp_path):
    for name in ("rows.jsonl", "recipe.yaml"):
        shutil.copy(done / name, tmp_path)
    run(tmp_path, code=-signal.SIGKILL, plant=[partial(kill_after_step, 3, "dpo")])
    error = refused(tmp_path, 8, "--resume", "stages.dpo.beta=0.3")
    assert "it stopped at checkpoint-" in error
    assert ", and since then changed: beta 0.1 -> 0.3" in error
    assert "truing runs rm out/dpo" in error
    assert decided(tmp_path, "stages.dpo.max_nonfinite_steps=2")["dpo"][0] == "go on"
    shutil.rmtree(tmp_path / "out" / "dpo")
    assert decided(tmp_path, "stages.dpo.beta=0.3")["dpo"] == ("run", "not run yet")


def test_a_resume_that_cannot_end_in_the_same_bits_says_so_and_keeps_it(done, tmp_path):
    for name in ("rows.jsonl", "recipe.yaml"):
        shutil.copy(done / name, tmp_path)
    run(tmp_path, code=-signal.SIGKILL, plant=[partial(kill_after_step, 3, "dpo")])
    file = tmp_path / "out" / "dpo" / "run.json"
    info = json.loads(file.read_text())
    assert "though" not in decided(tmp_path)["dpo"][1]
    assert info["machine"].keys() == {"processor", "threads", "accelerator"}
    torch_now, info["versions"]["torch"] = info["versions"]["torch"], "1.0"
    info["versions"]["truing"] = "0.0"
    info["machine"]["threads"], info["inputs"]["code"] = "64", "older"
    file.write_text(json.dumps(info))
    action, why = decided(tmp_path)["dpo"]
    assert action == "go on"
    assert f"though since then changed: Truing's code, torch 1.0 -> {torch_now}, threads 64" in why
    assert why in run(tmp_path, "--resume").said
    facts = json.loads(file.read_text())["facts"]
    assert facts["resumed_though"][:2] == ["Truing's code", f"torch 1.0 -> {torch_now}"]


def test_the_code_version_is_that_of_what_a_stage_uses(tmp_path, monkeypatch):
    """A change to PPO makes no DPO stage new; one to the operations they share makes both."""
    copy = shutil.copytree(code_version.PACKAGE, tmp_path / "truing")
    monkeypatch.setattr(code_version, "PACKAGE", copy)
    stage = "truing.pipeline.stages.train"

    def versions():
        code_version._imports.cache_clear()
        objectives = ("pairwise.dpo", "policy_gradient.ppo")
        return [code_version.code_version([stage, f"truing.objectives.{o}"]) for o in objectives]

    def edit(name):
        file = copy / name
        file.write_text(file.read_text() + "\n# edited\n")

    dpo, ppo = versions()
    edit("objectives/policy_gradient/ppo.py")
    assert versions()[0] == dpo
    assert versions()[1] != ppo
    edit("ops.py")
    assert versions()[0] != dpo
    edit("cli.py")
    assert versions() == versions()
    code_version._imports.cache_clear()
