"""Other people's programs, each in a process of its own behind the walls of `_jail`.

The verdict never comes from the process that ran the program. What a script printed is compared
here. What a function returned is compared by a second process, the judge, which holds the tests
and never runs the program's code; the program's process has never seen the tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from truing.errors import RolloutError

BOOTSTRAP = (
    "import sys; sys.path.append(sys.argv.pop(1)); from _jail._start import main; "
    "sys.path.pop(); main()"
)
MOST_FILES = 256
"""More files than this in a program's folder end it."""
MOST_HIDDEN = 16
"""So many files may be gone from the folder and still be mapped; the program ends with more."""
START_SECONDS = 60.0
"""A loaded machine may take this long to start an interpreter; that is not the program's time."""
GLANCE_SECONDS = 0.05
"""How often the folder's size is looked at."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use. `seconds` is wall-clock time from when its walls stand."""

    seconds: float
    memory_bytes: int
    output_bytes: int
    file_bytes: int


@dataclass(frozen=True, slots=True)
class Output:
    """What a script printed."""

    text: bytes
    finished: bool
    """Whether it came to its end by itself with exit status 0."""
    within_limits: bool
    """Whether it did so in its time and with no more output and files than it may."""


def run_script(program: str, stdin: str, limits: Limits, interpreter: str = "") -> Output:
    """Run a program as a script. Raises RolloutError if the sandbox does not stand."""
    require(interpreter)
    job = {"role": "script", "program": program}
    with tempfile.TemporaryDirectory(prefix="truing-code-") as folder:
        with _started(job, stdin.encode("utf-8", "surrogatepass"), limits, interpreter, folder) as (
            process,
            report,
        ):
            assert process.stdout is not None
            watched = _Watch(process.pid, [report], [process.stdout], folder, limits)
            in_time = watched.until_closed(process)
        said, text = watched.seen
        _check(said)
        return Output(text, in_time and process.returncode == 0, in_time)


def run_tests(program: str, tests: Sequence[str], limits: Limits, interpreter: str = "") -> str:
    """A verdict per test: 1 passed, 0 failed, ? cannot be judged from outside the program.

    Raises RolloutError if the sandbox does not stand.
    """
    require(interpreter)
    job = {"role": "functions", "program": program}
    questions = json.dumps(list(tests)).encode()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="truing-code-"))
        requests, answers = _Pipe(stack), _Pipe(stack)
        one = stack.enter_context(
            _started(job, b"", limits, interpreter, folder, requests.read, answers.write)
        )
        two = stack.enter_context(
            _started(
                {"role": "judge"}, _part(questions), limits, interpreter, None,
                requests.write, answers.read,
            )
        )  # fmt: skip
        requests.close()
        answers.close()
        watched = _Watch(one[0].pid, [one[1], two[1]], [], folder, limits)
        watched.until_closed(two[0])
    _check(watched.seen[0])
    _check(watched.seen[1])
    verdicts = watched.seen[1][1:].decode()
    return verdicts.ljust(len(tests), "0")


@cache
def require(interpreter: str = "") -> None:
    """Try once whether the walls stand here. Raises RolloutError that says what is missing."""
    if sys.platform != "linux":
        raise RolloutError(
            f"code rewards need walls that {sys.platform} does not have",
            where="sandbox",
            remedy="run them on Linux 5.13 or newer, or score through an `http` reward",
        )
    limits = Limits(seconds=20.0, memory_bytes=1 << 29, output_bytes=1 << 16, file_bytes=1 << 16)
    job = {"role": "script", "program": ESCAPES}
    outside = Path(tempfile.gettempdir()) / f"truing-escape-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="truing-code-") as folder:
        with _started(job, str(outside).encode(), limits, interpreter, folder) as (process, report):
            assert process.stdout is not None
            watched = _Watch(process.pid, [report], [process.stdout], folder, limits)
            watched.until_closed(process)
        _check(watched.seen[0])
        found = watched.seen[1].decode("utf-8", "replace")
    if found != "closed\n":
        raise RolloutError(
            f"a program in the sandbox got out: {found or 'no answer'}",
            where="sandbox",
            remedy="do not score code on this machine; please report its kernel and container",
        )


ESCAPES = """
import os, socket, sys
def attempt(name, action):
    try:
        action()
    except OSError:
        return
    print(name, end=" ")
attempt("network", socket.socket)
attempt("processes", os.fork)
attempt("signals", lambda: os.kill(os.getppid(), 0))
outside = sys.stdin.read()
attempt("writes", lambda: open(outside, "w"))
attempt("reads", lambda: open("/etc/passwd"))
open("inside", "w").close()
print("closed")
"""


def _check(report: bytes) -> None:
    if report[:1] == b"R":
        return
    reason = report[1:].decode("utf-8", "replace") or "its interpreter did not come up"
    raise RolloutError(
        f"the sandbox cannot be built: {reason}",
        where="sandbox",
        remedy="provide what is missing, or score through an `http` reward that runs elsewhere",
    )


class _Pipe:
    """Two descriptors of ours, closed at the latest with the stack."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.read, self.write = os.pipe()
        stack.callback(self.close)

    def close(self) -> None:
        for name in ("read", "write"):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)


def _part(content: bytes) -> bytes:
    return b"%8d" % len(content) + content


@contextlib.contextmanager
def _started(
    job: Mapping[str, Any],
    rest: bytes,
    limits: Limits,
    interpreter: str,
    folder: str | None,
    requests: int = -1,
    answers: int = -1,
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A process and its report, both gone at the end. It inherits its pipes and nothing else."""
    inside = {
        "seconds": limits.seconds,
        "memory_bytes": limits.memory_bytes,
        "file_bytes": limits.file_bytes,
    }
    header = json.dumps({**job, "folder": folder, "limits": inside}).encode()
    read, write = os.pipe()
    command = [interpreter or sys.executable, "-I", "-X", "utf8", "-c", BOOTSTRAP]
    command[2:2] = [] if interpreter else ["-S"]
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(open(read, "rb", buffering=0))
        with tempfile.TemporaryFile() as content, open(write, "wb", buffering=0):
            content.write(_part(header) + rest)
            content.seek(0)
            try:
                process = subprocess.Popen(
                    [*command, str(Path(__file__).parent), *map(str, (write, requests, answers))],
                    stdin=content,
                    stdout=subprocess.PIPE if job["role"] == "script" else subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd=folder or "/",
                    env={},
                    pass_fds=[fd for fd in (write, requests, answers) if fd >= 0],
                    start_new_session=True,
                )
            except OSError as error:
                raise RolloutError(
                    f"{command[0]} does not start ({error.strerror})", where="sandbox"
                ) from error
        try:
            yield process, report
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _hides(pid: int) -> bool:
    """Whether a program keeps files on the disk that no look into its folder shows: each descriptor
    may hold one, of which it has few, and each mapping, of which it could have a million."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_bytes()
    except OSError:  # it has ended
        return False
    return maps.count(b"(deleted)") > MOST_HIDDEN


class _Watch:
    """Reads what processes say, and stops when it is too late or too much."""

    def __init__(
        self,
        program: int,
        reports: Sequence[IO[bytes]],
        outputs: Sequence[IO[bytes]],
        folder: str,
        limits: Limits,
    ) -> None:
        self.program, self.folder, self.limits = program, folder, limits
        self.streams = [*reports, *outputs]
        self.parts = [bytearray() for _ in self.streams]
        self.starting = self.parts[: len(reports)]
        self.deadline = time.monotonic() + START_SECONDS

    @property
    def seen(self) -> list[bytes]:
        """What each stream said, reports first."""
        return [bytes(part) for part in self.parts]

    def until_closed(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether all streams closed and the process ended by itself, within all limits."""
        with selectors.DefaultSelector() as selector:
            for stream, part in zip(self.streams, self.parts, strict=True):
                selector.register(stream, selectors.EVENT_READ, part)
            while selector.get_map() or process.poll() is None:
                if self._left() <= 0 or self._is_too_much() or _hides(self.program):
                    return False
                pause = GLANCE_SECONDS if selector.get_map() else GLANCE_SECONDS / 10
                for key, _ in selector.select(min(self._left(), pause)):
                    data = os.read(key.fd, 1 << 16)
                    key.data.extend(data)
                    if not data:
                        selector.unregister(key.fileobj)
                if self.starting and all(self.starting):
                    self.starting = []
                    self.deadline = time.monotonic() + self.limits.seconds
        return not self._is_too_much()

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    def _is_too_much(self) -> bool:
        if any(len(part) > self.limits.output_bytes for part in self.parts):
            return True
        sizes = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # files come and go as we look
                    sizes.append(entry.stat(follow_symlinks=False).st_blocks * 512)
        return len(sizes) > MOST_FILES or sum(sizes) > self.limits.file_bytes
