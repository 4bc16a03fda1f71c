"""Disks that fail: killed at an operation, out of space, and what a power cut leaves of them."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

from truing.storage import Disk

HALF = "half"


class CountedDisk(Disk):
    """Counts operations, writing in two halves each of which is one; does `at` at number `stop`."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.count, self.fired = stop, 0, False
        self.log: list[tuple[str, Path, Path | None]] = []
        """What was done, in order: (operation, path, other path)."""

    def _before(self, operation: str, path: Path, other: Path | None = None) -> None:
        if self.count == self.stop:
            self.fired = True
            self.at(operation, path)
        self.count += 1
        self.log.append((operation, path, other))

    def at(self, operation: str, path: Path) -> None:
        """What happens there."""

    def write(self, path: Path, content: bytes) -> None:
        half = len(content) // 2
        self._before("open", path)
        path.write_bytes(b"")
        self._before("write", path)
        path.write_bytes(content[:half])
        self._before("write", path)
        path.write_bytes(content)
        self._before("sync", path)
        super().sync_file(path)

    def write_by(self, write: Callable[[Path], None], path: Path) -> None:
        self._before("open", path)
        path.write_bytes(b"")
        self._before("write", path)
        write(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        self._before("write", path)
        path.write_bytes(whole)

    def sync_file(self, path: Path) -> None:
        self._before("sync", path)
        super().sync_file(path)

    def sync_folder(self, path: Path) -> None:
        self._before("sync folder", path)
        super().sync_folder(path)

    def make_folder(self, path: Path) -> None:
        self._before("make", path)
        super().make_folder(path)

    def rename(self, old: Path, new: Path) -> None:
        self._before("rename", old, new)
        super().rename(old, new)

    def remove_folder(self, path: Path) -> None:
        self._before("remove", path)
        super().remove_folder(path)


class KilledDisk(CountedDisk):
    """SIGKILL, for real: only in a process of its own."""

    def at(self, operation: str, path: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class FullDisk(CountedDisk):
    """No space left, from there on."""

    def _before(self, operation: str, path: Path, other: Path | None = None) -> None:
        writes = operation in ("open", "write", "make")
        if self.stop is not None and self.count >= self.stop and writes:
            self.fired = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        self.count += 1


class BadDisk(CountedDisk):
    """An input/output error there."""

    def at(self, operation: str, path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
