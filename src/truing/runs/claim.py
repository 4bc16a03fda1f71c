"""One process at a time works on an output folder.

The lock is the kernel's (flock): it goes with the process that holds it, however that ends, so a
stale one cannot be. The file beside it only says who.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from truing.errors import UsageError
from truing.rundir import RUN_FILE, write_text
from truing.storage import sweep

LOCK_FILE, OWNER_FILE = ".lock", ".owner.json"
OWN_FILES = (LOCK_FILE, OWNER_FILE)


@contextmanager
def claimed(path: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Make `path` ours for a while: empty, or continued with --resume, or emptied with --overwrite.

    Raises UsageError if another process works on it, for a folder that holds something and neither
    flag, for a file, for a folder that cannot be made or that --overwrite would empty but that no
    recipe made.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other", remedy="give one of them")
    if path.exists() and not path.is_dir():
        raise UsageError("the output is a file", where=str(path), remedy="choose another output")
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / LOCK_FILE, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise _taken(path) from error
    except OSError as error:
        raise UsageError(
            f"the output folder cannot be written ({error.strerror})",
            where=str(path),
            remedy="make it writable, or choose another output",
        ) from error
    try:
        write_text(path / OWNER_FILE, json.dumps({"pid": os.getpid(), "host": platform.node()}))
        sweep(path)
        _prepare(path, resume=resume, overwrite=overwrite)
        yield
    finally:
        (path / OWNER_FILE).unlink(missing_ok=True)
        lock.release()


def _prepare(path: Path, *, resume: bool, overwrite: bool) -> None:
    inside = [entry for entry in path.iterdir() if entry.name not in OWN_FILES]
    if inside and overwrite:
        if not any(path.glob(f"*/{RUN_FILE}")):
            raise UsageError(
                "--overwrite would delete a folder that is no run",
                where=str(path),
                remedy="choose another output, or empty the folder yourself",
            )
        for entry in inside:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    elif inside and not resume:
        raise UsageError(
            "the output folder is not empty",
            where=str(path),
            remedy="--resume keeps what is done, --overwrite starts over, or choose another output",
        )


def _taken(path: Path) -> UsageError:
    owner = path / OWNER_FILE
    who = json.loads(owner.read_text()) if owner.is_file() else {}
    name = f"process {who['pid']} on {who['host']}" if who else "another process"
    return UsageError(
        f"{name} works on this folder",
        where=str(path),
        remedy="wait for it or stop it, or choose another output",
    )


def is_claimed(path: Path) -> bool:
    """Whether a process works on this output folder now."""
    if not (path / LOCK_FILE).is_file():
        return False
    lock = FileLock(path / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False
