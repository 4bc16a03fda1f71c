"""Shared by tests that run hostile programs: whether they can, and that the host stays as it is."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from truing.errors import RolloutError
from truing.rewards._sandbox import require


def stands() -> bool:
    try:
        require()
    except RolloutError:
        return False
    return True


sandboxed = pytest.mark.skipif(not stands(), reason="no Landlock or seccomp on this machine")


def processes() -> set[int]:
    """Every process of this machine that was started from the sandbox, zombies included."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = f"PPid:\t{os.getpid()}\n" in (entry / "status").read_text()
            if ours or b"_jail._start" in (entry / "cmdline").read_bytes():
                found.add(int(entry.name))
    return found


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
    before = processes()
    yield home
    assert processes() <= before
    assert list(scratch.iterdir()) == []
    assert [path.name for path in home.iterdir()] == ["victim"]
    state = victim.stat()
    assert (victim.read_text(), state.st_mode & 0o777) == ("precious", 0o640)
    assert (state.st_mtime, state.st_nlink, state.st_uid) == (1000, 1, os.getuid())
