"""Recipes that are run by the command line in a forked process, with faults in a stage of them."""

from __future__ import annotations

import hashlib
import os
import signal

from faults.harness import command, fire

RECIPE = """
name: t
output: out
seed: 1
model: {path: random:llama, dtype: float32}
data: {path: rows.jsonl, test_rows: 4}
stages:
  sft: {method: sft, batch_size: 4, learning_rate: 0.001, seed: 3}
  dpo: {method: dpo, from: sft, batch_size: 4, learning_rate: 0.001, beta: 0.1, save_steps: 1}
  ppo:
    method: ppo
    from: sft
    reward: character_share
    max_completion_length: 4
    num_rollouts: 1
    rollout_batch_size: 4
    batch_size: 4
"""


def run(folder, *flags, code=0, plant=()):
    """`truing run recipe.yaml`. Raises AssertionError for another exit code."""
    result = command(["run", "recipe.yaml", *flags], folder, plant)
    assert result.code == code, result.said
    return result


def refused(folder, code, *flags):
    """What it says when it refuses."""
    return run(folder, *flags, code=code).said


def kill_after_step(number, stage):
    """SIGKILL once the line of a step of a stage is written."""
    from truing.rundir import RunDirectory

    append = RunDirectory.append_metrics

    def then(self, step, metrics):
        append(self, step, metrics)
        if step == number and self.path.name == stage:
            fire()
            os.kill(os.getpid(), signal.SIGKILL)

    RunDirectory.append_metrics = then


def same_files(one, other):
    """The weights of every stage are the same to the last bit."""

    def hashes(folder):
        return {
            path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.glob("*/*.safetensors")
        }

    assert hashes(one) == hashes(other) != {}
