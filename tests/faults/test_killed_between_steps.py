"""SIGKILL between two steps: the resumed run leaves what the unbroken one leaves."""

from __future__ import annotations

import signal
from functools import partial

import pytest
from harness import same, succeeded, truing
from plants import kill_after_step

from faults.matrix import TRAINED


def last_step(stage, whole):
    lines = [value for name, value in whole.items() if name.startswith("metrics line")]
    return lines[-1]["step"]


@pytest.mark.fault("P2")
@pytest.mark.parametrize("when", ["first", "middle", "epoch", "last"])
@pytest.mark.parametrize("stage", TRAINED)
def test_killed_between_steps(stage, when, out, whole):
    last = last_step(stage, whole(stage))
    step = {"first": 1, "middle": last // 2 - 1, "epoch": last // 2, "last": last}[when]
    killed = truing(stage, out, plant=[partial(kill_after_step, step)])
    assert killed.code == -signal.SIGKILL
    succeeded(truing(stage, out, "--resume"))
    same(stage, out, whole(stage))
    # and once more: nothing is left to do, and nothing changes
    again = succeeded(truing(stage, out, "--resume"))
    assert "done before, kept" in again.said
    same(stage, out, whole(stage))
