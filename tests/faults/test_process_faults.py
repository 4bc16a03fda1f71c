"""Runs that are killed, told to stop, cut off from power: the resumed run leaves what the unbroken
one leaves."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

import plants
import pytest
from harness import LostError, command, same, stage_folder, stopped, succeeded, truing

from faults.matrix import EVERY, SAMPLING, TRAINED

OPERATIONS = {stage: [75, 12, 33, 50, 110, 150] for stage in TRAINED} | {"best_of_n": [9, 3, 6]}
"""Of the disk: those in and between saves. Best-of-N saves nothing but its result."""
KILLED = -signal.SIGKILL


def points(numbers=OPERATIONS):
    """(stage, operation): one on every push, the others in the full run."""
    for stage in EVERY:
        for place, number in enumerate(numbers[stage]):
            marks = [pytest.mark.full] if place else []
            yield pytest.param(stage, number, marks=marks, id=f"{stage}-{number}")


@pytest.mark.fault("P1")
@pytest.mark.parametrize(("stage", "number"), list(points()))
def test_killed_while_it_writes(stage, number, out, whole):
    killed = truing(stage, out, plant=[partial(plants.at_operation, number, plants.kill)])
    assert killed.code == KILLED
    succeeded(truing(stage, out, "--resume"))
    same(stage, out, whole(stage))


@pytest.mark.full
@pytest.mark.fault("P1")
@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_killed_at_every_operation(stage, tmp_path, whole):
    """Every write, half-write, sync and rename of a whole run with one save in its middle."""
    whole_run = succeeded(truing(stage, tmp_path / "whole" / "out", "--save-steps", "5"))
    assert whole_run.fired == 0
    for number in range(1000):
        out = tmp_path / str(number) / "out"
        fault = partial(plants.at_operation, number, plants.kill)
        killed = truing(stage, out, "--save-steps", "5", plant=[fault], may_miss=True)
        if not killed.fired:
            assert number > 60
            return
        assert killed.code == KILLED
        succeeded(truing(stage, out, "--save-steps", "5", "--resume"))
        same(stage, out, whole(stage))


@pytest.mark.fault("P5")
@pytest.mark.parametrize(("stage", "number"), list(points()))
def test_a_power_cut(stage, number, out, whole):
    cut = truing(stage, out, plant=[partial(plants.power_cut, number, str(out))])
    assert cut.code == KILLED
    succeeded(truing(stage, out, "--resume"))
    same(stage, out, whole(stage))


MOMENTS = {
    "step": partial(plants.kill_after_step, 5, signal.SIGTERM),
    "save": partial(plants.at_operation, 75, plants.terminate),
    "rollout": partial(plants.kill_in_rollout, 2, signal.SIGTERM),
}


@pytest.mark.fault("P3")
@pytest.mark.parametrize(
    ("stage", "moment"),
    [
        *((stage, "step") for stage in TRAINED),
        *(pytest.param(stage, "save", marks=pytest.mark.full) for stage in TRAINED),
        *((stage, "rollout") for stage in SAMPLING[:2]),
    ],
)
def test_sigterm_saves_what_there_is(stage, moment, out, whole):
    """Also where no checkpoint was asked for by steps or minutes."""
    off = () if moment == "save" else ("--save-steps", "null", "--save-minutes", "null")
    told = truing(stage, out, *off, plant=[MOMENTS[moment]])
    assert told.code == 143
    if not list(stage_folder(stage, out).glob("checkpoint-*")):
        raise LostError("nothing was saved")
    succeeded(truing(stage, out, "--resume", *off))
    same(stage, out, whole(stage))


@pytest.mark.fault("P4")
@pytest.mark.parametrize("times", [pytest.param(1, marks=pytest.mark.full), 2])
@pytest.mark.parametrize("stage", TRAINED)
def test_sigint_once_saves_and_twice_stops_at_once(stage, times, out, whole):
    fault = partial(plants.kill_after_step, 5, signal.SIGINT, times)
    told = truing(stage, out, plant=[fault])
    assert told.code == 130
    saved = {path.name for path in stage_folder(stage, out).glob("checkpoint-*")}
    assert ("checkpoint-5" in saved) is (times == 1)
    succeeded(truing(stage, out, "--resume"))
    same(stage, out, whole(stage))


@pytest.mark.fault("P4")
@pytest.mark.parametrize("stage", ["sft", pytest.param("ppo", marks=pytest.mark.full)])
def test_two_signals_in_a_step_keep_nothing_of_it(stage, out, whole):
    """Where nothing was saved before: half of the step is in the weights."""
    off = ("--save-steps", "null", "--save-minutes", "null")
    fault = partial(plants.kill_after_step, 5, signal.SIGINT, 2)
    assert truing(stage, out, *off, plant=[fault]).code == 130
    assert not list(stage_folder(stage, out).glob("checkpoint-*"))
    succeeded(truing(stage, out, "--resume", *off))
    same(stage, out, whole(stage))


@pytest.mark.fault("P3")
@pytest.mark.fault("P4")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("stage", ["best_of_n"])
def test_a_signal_while_best_of_n_draws(stage, sent, code, out, whole):
    told = truing(stage, out, plant=[partial(plants.kill_in_rollout, 1, sent)])
    assert told.code == code
    succeeded(truing(stage, out, "--resume"))
    same(stage, out, whole(stage))


@pytest.mark.fault("P4")
@pytest.mark.parametrize("stage", ["sft", "best_of_n"])
def test_a_run_in_the_background_of_a_shell_hears_sigint(stage, out, whole):
    """It is started with SIGINT ignored."""
    stop = {"sft": plants.kill_after_step, "best_of_n": plants.kill_in_rollout}[stage]
    told = truing(stage, out, plant=[plants.in_the_background, partial(stop, 1, signal.SIGINT)])
    assert told.code == 130
    succeeded(truing(stage, out, "--resume"))
    same(stage, out, whole(stage))


@pytest.mark.fault("P13")
@pytest.mark.parametrize("stage", TRAINED)
def test_killed_again_and_again(stage, out, whole):
    for number, step in enumerate((2, 3, 6)):
        again = ["--resume"] if number else []
        fault = partial(plants.kill_after_step, step)
        assert truing(stage, out, *again, plant=[fault]).code == KILLED
    succeeded(truing(stage, out, "--resume"))
    same(stage, out, whole(stage))


@pytest.mark.fault("P11")
@pytest.mark.parametrize("stage", EVERY)
def test_one_process_a_run_and_the_lock_of_a_killed_one_is_free(stage, out, whole, tmp_path):
    """The first one is halted in its middle; a second one asks for the same folder."""
    other = tmp_path / "elsewhere" / "out"
    other.parent.mkdir()
    refused = []

    def meanwhile(process):
        wait_for(out.parent / ".fired")
        argv = ["runs", "rm", str(out)]
        refused.append(truing(stage, out, "--resume", cwd=other.parent))
        refused.append(command(argv, other.parent))
        os.kill(process.pid, signal.SIGKILL)

    halt = partial(plants.kill_after_step, 4, signal.SIGSTOP)
    if stage == "best_of_n":
        halt = partial(plants.kill_in_rollout, 1, signal.SIGSTOP)
    first = truing(stage, out, plant=[halt], during=meanwhile)
    assert first.code == KILLED
    stopped(refused[0], 2, "works on this folder")
    stopped(refused[1], 2, "a process works on it")
    succeeded(truing(stage, out, "--resume"))
    same(stage, out, whole(stage))


@pytest.mark.fault("P2")
@pytest.mark.parametrize("stage", ["best_of_n"])
def test_killed_while_best_of_n_draws(stage, out, whole):
    killed = truing(stage, out, plant=[partial(plants.kill_in_rollout, 1)])
    assert killed.code == KILLED
    succeeded(truing(stage, out, "--resume"))
    same(stage, out, whole(stage))


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
