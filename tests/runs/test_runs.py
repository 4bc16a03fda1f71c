"""`truing runs`: how runs stand, what differs between two, what is damaged, what is removed."""

from __future__ import annotations

import json

import pytest

from truing.errors import ResourceError, UsageError
from truing.rundir import RunDirectory, RunInfo
from truing.runs.claim import claimed, is_claimed
from truing.runs.compare import differing_config, differing_inputs, metrics_side_by_side
from truing.runs.listing import one_run, read, runs_in
from truing.runs.upkeep import children, lineage, remove, verify
from truing.storage import write_folder


def one_file(folder):
    (folder / "a").write_bytes(b"a")
    return ()


def make(output, name, *, status="completed", steps=3, config=None, saved=None, **facts):
    """A run's folder as a stage leaves it."""
    run = RunDirectory(output / name)
    info = RunInfo(stage=name, method="sft", status="running", **facts)
    run.start(info, config or {"beta": 0.1, "lora": {"rank": 4}})
    for step in range(1, steps + 1):
        run.append_metrics(step, {"loss": 1 / step, "timing/other": 3.0})
    (run.path / "model.safetensors").write_bytes(b"weights of " + name.encode())
    if saved is not None:
        write_folder(run.path / f"checkpoint-{saved}", one_file, {})
    if status == "completed":
        run.finish(info)
    else:
        info.status, info.reason = status, facts.get("reason", "")
        run.write_info(info)
    return run.path


def test_status(tmp_path):
    out = tmp_path / "out"
    make(out, "a")
    make(out, "b", status="stopped", saved=2)
    make(out, "c", status="failed", reason="loss is nan\n  what to do: less")
    make(out, "d", status="running", saved=3)
    (make(out, "e") / "run.json").write_text("{")
    status = {run.path.name: run.status for run in runs_in(tmp_path)}
    assert status == {
        "a": "completed",
        "b": "stopped at step 3, resumable from step 2",
        "c": "failed at step 3: loss is nan",
        "d": "killed at step 3, resumable from step 3",
        "e": "unreadable: run.json",
    }
    with claimed(out, resume=True, overwrite=False):
        assert read(out / "d").status == "running, at step 3"


def test_a_claim_is_one_process_s_and_ends_with_it(tmp_path):
    with claimed(tmp_path / "out", resume=False, overwrite=False):
        assert is_claimed(tmp_path / "out")
        with (
            pytest.raises(UsageError, match=r"process \d+ on .* works on this folder"),
            claimed(tmp_path / "out", resume=True, overwrite=False),
        ):
            pass
    assert not is_claimed(tmp_path / "out")
    with claimed(tmp_path / "out", resume=False, overwrite=False):
        pass  # what a claim leaves behind does not make the folder occupied


def test_compare(tmp_path):
    one = read(make(tmp_path, "one", inputs={"data": "x", "seed": "1"}))
    config = {"beta": 0.2, "lora": {"rank": 4}, "gamma": 1}
    two = read(make(tmp_path, "two", steps=2, config=config, inputs={"data": "y", "seed": "1"}))
    assert differing_config(one, two) == [("beta", "0.1", "0.2"), ("gamma", "-", "1")]
    assert differing_inputs(one, two) == ["data"]
    assert metrics_side_by_side(one, two) == [
        ("step", "3", "2"),
        ("loss", "0.333333", "0.5"),
    ]


def test_verify_names_what_is_damaged(tmp_path):
    good = make(tmp_path, "good", saved=2)
    bad = make(tmp_path, "bad")
    (bad / "model.safetensors").write_bytes(b"weights of bat")
    found = dict(verify(tmp_path))
    assert found[good] == found[good / "checkpoint-2"] == ""
    assert "its SHA-256" in found[bad] or "bytes, not" in found[bad]
    assert len(found) == 3


def test_remove(tmp_path):
    base = make(tmp_path / "out", "base", saved=2)
    kept = make(tmp_path / "out", "kept", parents={"from": "base"})
    assert children(read(base)) == ["kept"]
    assert lineage(read(kept)) == ["base", "kept"]
    _, freed = remove(base, only_checkpoints=True)
    assert freed > 0
    assert not (base / "checkpoint-2").exists()
    assert (base / "model.safetensors").exists()
    with (
        claimed(tmp_path / "out", resume=True, overwrite=False),
        pytest.raises(UsageError, match="a process works on it"),
    ):
        remove(base)
    remove(base)
    assert not base.exists()
    assert kept.exists()
    (tmp_path / "link").symlink_to(kept)
    with pytest.raises(UsageError, match="a link"):
        remove(tmp_path / "link")
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="no run here"):
        remove(tmp_path / "mine")
    assert (tmp_path / "mine").exists()


def test_one_run_or_the_choice(tmp_path):
    make(tmp_path, "a")
    assert one_run(tmp_path).path == tmp_path / "a"
    make(tmp_path, "b")
    with pytest.raises(UsageError, match="2 runs") as caught:
        one_run(tmp_path)
    assert str(tmp_path / "b") in caught.value.remedy


def test_a_cut_last_line_of_metrics_is_no_step(tmp_path):
    path = make(tmp_path, "a", status="stopped")
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, "loss": 0.1})[:9])
    assert read(path).step == 3


def test_a_claim_sweeps_what_killed_processes_left_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    run = make(out, "a", saved=2)
    doomed = [out / ".summary.json.41.tmp", run / ".42.partial", run / ".checkpoint-3.7.partial"]
    doomed[0].write_text("half")
    for folder in doomed[1:]:
        folder.mkdir()
        (folder / ".model.safetensors.7.tmp").write_text("half")
    kept = [out / ".notes.tmp", run / ".mine", run / "model.safetensors", run / "checkpoint-2"]
    for mine in kept[:2]:
        mine.write_text("mine")
    with claimed(out, resume=True, overwrite=False):
        assert not any(path.exists() for path in doomed)
        assert all(path.exists() for path in kept)


def test_lines_of_metrics_that_somebody_removes_are_missed(tmp_path):
    """A file that is made anew would be one without its first lines, and nobody would know."""
    run = RunDirectory(tmp_path)
    run.append_metrics(1, {"loss": 1.0})
    run.append_metrics(2, {"loss": 1.0})
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(ResourceError, match="it has 0 bytes, and had"):
        run.append_metrics(3, {"loss": 1.0})
