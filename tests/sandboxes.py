"""Shared by tests that run hostile programs: whether they can, and that the host stays as it is."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from truing.errors import RolloutError
from truing.rewards._sandbox import require


def stands() -> bool:
    """Whether this machine has the walls. Walls with a hole are no reason to skip."""
    try:
        require()
    except RolloutError as error:
        return "got out" in str(error)
    return True


sandboxed = pytest.mark.skipif(not stands(), reason="no Landlock or seccomp on this machine")


def children(parent: int) -> set[int]:
    """The processes that `parent` started, zombies included."""
    return {pid for pid, (mother, _) in _table().items() if mother == parent}


def orphans() -> set[int]:
    """Programs in a sandbox that no Python waits for any more."""
    table = _table()
    return {
        pid
        for pid, (mother, command) in table.items()
        if b"_jail._start" in command and b"python" not in table.get(mother, (0, b""))[1]
    }


def _table() -> dict[int, tuple[int, bytes]]:
    """Process -> its parent, its command line."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            status = (entry / "status").read_text()
            mother = int(status.partition("PPid:")[2].split()[0])
            found[int(entry.name)] = mother, (entry / "cmdline").read_bytes()
    return found


def until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for it. Raises AssertionError when time is up."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A home with a file in it; afterwards everything is as it was and nothing runs."""
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    victim = home / "victim"
    victim.write_text("precious")
    victim.chmod(0o640)
    os.utime(victim, (1000, 1000))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TRUING_CANARY", "canary-4711")
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    before = children(os.getpid())
    yield home
    assert children(os.getpid()) <= before
    until(lambda: not orphans(), 5)  # those of a test beside this one die on their own
    assert list(scratch.iterdir()) == []
    assert [path.name for path in home.iterdir()] == ["victim"]
    state = victim.stat()
    assert (victim.read_text(), state.st_mode & 0o777) == ("precious", 0o640)
    assert (state.st_mtime, state.st_nlink, state.st_uid) == (1000, 1, os.getuid())
