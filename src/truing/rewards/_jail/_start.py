"""The first lines inside: read the job, raise the walls, say so, and only then run anything."""

from __future__ import annotations

import json
import os
import sys

from . import _judge, _program
from ._walls import NoWallError, raise_walls

READY, REFUSED = b"R", b"!"


def main() -> None:
    """`report`, `requests` and `answers` are file descriptors; the job comes on standard input.

    On `report`: R once the walls stand (or ! and the reason), then the judge's verdicts.
    """
    report, requests, answers = map(int, sys.argv[1:4])
    job = json.loads(_read_part())
    sys.set_int_max_str_digits(0)
    try:
        raise_walls(job.pop("folder"), **job.pop("limits"))
    except (NoWallError, OSError, ValueError) as error:
        os.write(report, REFUSED + str(error).encode("utf-8", "replace"))
        os._exit(1)
    os.write(report, READY)
    if job["role"] == "judge":
        tests = json.loads(_read_part())
        for verdict in _judge.judge(tests, requests, answers):
            os.write(report, verdict.encode())
        os._exit(0)
    os.close(report)
    if job["role"] == "functions":
        _program.serve(job["program"], requests, answers)
        os._exit(0)
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    _program.run(job["program"], "__main__")


def _read_part() -> bytes:
    """Eight digits of length and as many bytes, and not one more: the rest is the program's."""
    parts: list[bytes] = []
    missing = int(_read(8))
    while missing > 0:
        parts.append(_read(missing))
        missing -= len(parts[-1])
    return b"".join(parts)


def _read(most: int) -> bytes:
    data = os.read(0, most)
    if not data:
        raise EOFError("the job ends early")
    return data
