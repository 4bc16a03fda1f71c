"""One side of a comparison, in a process of its own: `python -m bench.worker`, run by pairing.py.

JSON lines come in on stdin: first the job and the setting, then "warm" once, then "run" as often
as wanted. Each is answered by one line. Between them the process sleeps on its pipe.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO

from bench import memory
from bench.job import Job, Setting

Answer = dict[str, Any]


class Channel:
    """The side's view of its driver: it asks what to do and answers with what it measured."""

    def __init__(self, answers: TextIO, device: str) -> None:
        self.answers, self.device = answers, device
        self.load_peak = 0

    def loaded(self, **facts: Any) -> None:
        """Everything is in memory: what is measured from here on is the work."""
        self.load_peak = memory.peak(self.device)
        memory.reset_peak(self.device)
        self.answer({"load_peak": self.load_peak, **facts})

    def command(self) -> str:
        """The next command; ends the process when there is none."""
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(0)
        command: str = json.loads(line)
        memory.settle(self.device)
        return command

    def answer(self, facts: Answer) -> None:
        self.answers.write(json.dumps({"peak": memory.peak(self.device), **facts}) + "\n")
        self.answers.flush()


class Clock:
    """Seconds, with the device's work done."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.started = self._now()

    def _now(self) -> float:
        memory.settle(self.device)
        return time.perf_counter()

    def lap(self) -> float:
        """Seconds since the start or the last lap."""
        was, self.started = self.started, self._now()
        return self.started - was


def main() -> None:
    """Read the job, become the side it names, serve until the pipe closes."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print goes to the log, not between the answers
    raw = json.loads(sys.stdin.readline())
    job, setting = Job.load(raw["job"]), Setting(**raw["setting"])
    channel = Channel(answers, job.device)
    if setting.side == "ours":
        from bench import our_side

        our_side.serve(job, setting, channel)
    elif setting.side == "trl":
        from bench import trl_side

        trl_side.serve(job, setting, channel, raw["rollout"])
    else:
        from bench import generate_side

        generate_side.serve(job, setting, channel)


if __name__ == "__main__":
    main()
