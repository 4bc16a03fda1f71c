"""Faults to plant in a run, by what they do. Each is a function without arguments once bound with
`functools.partial`, called in the run's own process before the command starts; it replaces one
thing and calls `fire()` when the fault happens."""

from __future__ import annotations

import os
import signal

from harness import fire


def kill_after_step(number: int, sent: int = signal.SIGKILL) -> None:
    """A signal to itself once the line of step `number` is written."""
    from truing.rundir import RunDirectory

    append = RunDirectory.append_metrics

    def then(self, step, metrics):
        append(self, step, metrics)
        if step == number:
            fire()
            os.kill(os.getpid(), sent)

    RunDirectory.append_metrics = then
