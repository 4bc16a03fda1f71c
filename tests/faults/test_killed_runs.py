"""Whole runs from the command line, stopped by signals at any moment, and gone on with."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time

import pytest

ROWS = [
    {"prompt": f"Number {i}: ", "chosen": f" good {i}", "rejected": f" bad {i} bad"}
    for i in range(24)
]
TIMES = ("seconds", "timing/")
STAGES = {
    "sft": ["sft", "--num-train-epochs", "12", "--batch-size", "4"],
    "dpo": ["dpo", "--num-train-epochs", "12", "--batch-size", "4"],
    "ppo": [
        "ppo", "--reward", "character_share", "--num-rollouts", "16", "--rollout-batch-size", "8",
        "--batch-size", "4", "--num-train-epochs", "2", "--max-completion-length", "8",
        "--score-normalization", "running", "--kl-control", "budget", "--kl-target", "2",
    ],
}  # fmt: skip


@pytest.fixture
def truing(tmp_path):
    """Start a run in a process of its own; `--save-steps 1`, so that every step can be gone on
    from."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def start(name, output, *flags):
        method, *knobs = STAGES[name]
        command = [sys.executable, "-m", "truing", method, *knobs]
        command += ["--model", "random:llama", "--model.dtype", "float32", "--data", str(data)]
        command += ["--data.test-rows", "4", "--learning-rate", "1e-3", "--output", str(output)]
        command += ["--save-steps", "1", *flags]
        return subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return start


def finished(process):
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    return said


def left(folder, name):
    """(hash of the weights, metrics without clocks) of a stage."""
    weights = hashlib.sha256((folder / name / "model.safetensors").read_bytes()).hexdigest()
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    rows = [
        {n: v for n, v in json.loads(line).items() if not n.startswith(TIMES)} for line in lines
    ]
    return weights, rows


def wait_for(folder, name, step):
    """Until this step is written down; False if the run has ended before."""
    metrics = folder / name / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= step:
            return
        time.sleep(0.005)
    raise AssertionError(f"no step {step}")


@pytest.mark.parametrize("name", STAGES)
def test_killed_again_and_again_it_ends_the_same(truing, tmp_path, name):
    """kill -9 at moments nobody chose; the weights are the same to the last bit."""
    finished(truing(name, tmp_path / "whole"))
    weights, rows = left(tmp_path / "whole", name)
    steps = rows[-1]["step"]
    draw = random.Random(7)
    at, fired = 0, 0
    while True:
        process = truing(name, tmp_path / "killed", *(["--resume"] if fired else []))
        at += draw.randint(6, 14)
        if at >= steps:
            break
        wait_for(tmp_path / "killed", name, at)
        time.sleep(draw.random() * 0.03)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        fired += process.returncode == -signal.SIGKILL
    said = finished(process)
    assert fired >= 3
    assert "goes on from checkpoint-" in said
    assert left(tmp_path / "killed", name) == (weights, rows)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_a_signal_saves_what_there_is(truing, tmp_path, name, number, code):
    """Without any checkpoint by steps or minutes."""
    finished(truing(name, tmp_path / "whole"))
    off = ("--save-steps", "null", "--save-minutes", "null")
    process = truing(name, tmp_path / "stopped", *off)
    wait_for(tmp_path / "stopped", name, 4)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    info = json.loads((tmp_path / "stopped" / name / "run.json").read_text())
    assert info["status"] == "failed"
    (saved,) = (tmp_path / "stopped" / name).glob("checkpoint-*")
    assert int(saved.name.partition("-")[2]) >= 4
    said = finished(truing(name, tmp_path / "stopped", "--resume", *off))
    assert f"goes on from {saved.name}" in said
    assert left(tmp_path / "stopped", name) == left(tmp_path / "whole", name)
