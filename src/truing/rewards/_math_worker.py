"""A process that compares mathematical answers: JSON lines in, JSON lines out.

    {"gold": "1/2", "text": "so it is $0.5$", "rounding": 6}  ->  true | false | null (no gold)

A process of its own, because an answer like 9^9^9^9 keeps sympy busy for ever in code that nothing
but the end of its process interrupts. This side is run by `python -m`, the other is `Checker`.
"""

from __future__ import annotations

import json
import logging
import select
import subprocess
import sys
from typing import Any

MEMORY = 4 * 2**30
"""Bytes of address space the process may have, where the system can say so."""


class Checker:
    """The other end: one process, started when it is first asked, and again after it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, question: dict[str, Any], seconds: float) -> bool | None:
        """The verdict, or None without a gold answer. Raises TimeoutError when time is up or the
        process died of the question; it is killed then."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self._process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], seconds)
            line = process.stdout.readline() if ready else ""
        except BrokenPipeError:
            line = ""
        if not line:
            self.close()
            raise TimeoutError(question["text"])
        verdict: bool | None = json.loads(line)
        return verdict

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()  # it has imported sympy: the time limit is for the answers
        return process


def main() -> None:
    """Answer until the input ends."""
    from math_verify import LatexExtractionConfig, parse, verify
    from math_verify.parser import ExprExtractionConfig

    logging.disable(logging.WARNING)  # that its own time limits are off: ours is outside
    _limit_memory()
    kinds = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    print("ready", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        gold = parse(question["gold"], parsing_timeout=None)
        verdict = None
        if gold:
            answer = parse(question["text"], extraction_config=kinds, parsing_timeout=None)
            rounding = question["rounding"]
            verdict = bool(verify(gold, answer, float_rounding=rounding, timeout_seconds=None))
        print(json.dumps(verdict), flush=True)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


if __name__ == "__main__":
    main()
