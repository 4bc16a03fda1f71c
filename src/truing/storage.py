"""Folders that are there whole or not at all, whatever stops the machine while they are written.

    beside/            filled by the caller, then each file is on the disk before the next thing
    manifest.json      names, sizes and SHA-256 of all files
    rename             only now has it its name; then the parent folder is on the disk, too

A reader takes a folder for good only if every byte is what the manifest says. No torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from truing.errors import CheckpointError, ResourceError

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 1
CHUNK = 1 << 20


class Disk:
    """The operations that durability hangs on, one method each, so that tests can count them, stop
    at any of them, and replay what a power cut leaves."""

    def write(self, path: Path, content: bytes) -> None:
        """A new file with this content, on the disk when it returns."""
        with path.open("wb") as file:
            for start in range(0, max(len(content), 1), CHUNK):
                file.write(content[start : start + CHUNK])
            file.flush()
            os.fsync(file.fileno())

    def sync_file(self, path: Path) -> None:
        """What was written to a file is on the disk."""
        with path.open("rb+") as file:
            os.fsync(file.fileno())

    def sync_folder(self, path: Path) -> None:
        """The names in a folder are on the disk."""
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def make_folder(self, path: Path) -> None:
        path.mkdir(parents=True)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def remove_folder(self, path: Path) -> None:
        shutil.rmtree(path)

    def free_bytes(self, path: Path) -> int:
        return shutil.disk_usage(path).free


DISK = Disk()


def write_folder(
    folder: Path,
    fill: Callable[[Path], None],
    facts: dict[str, Any],
    *,
    needs_bytes: int = 0,
    disk: Disk = DISK,
) -> None:
    """Make `folder` hold what `fill` writes into an empty one, and a manifest with `facts`.

    Until the last rename no reader sees it; a folder of that name that is there already is
    replaced after it. Raises ResourceError if the disk is full, cannot be written, or has less
    than `needs_bytes` free (nothing is written then).
    """
    free = disk.free_bytes(folder.parent)
    if free < needs_bytes:
        raise ResourceError(
            f"{needs_bytes:,} bytes are needed, {free:,} are free",
            where=str(folder.parent),
            remedy="free some space, or lower save_total_limit; then --resume",
        )
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        _write(beside, folder, fill, facts, disk)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise ResourceError(
            f"cannot be written ({error.strerror or error})",
            where=str(folder),
            remedy="free some space and --resume: what was saved before is untouched"
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            else "make the folder writable and --resume: what was saved before is untouched",
        ) from error


def _write(
    beside: Path,
    folder: Path,
    fill: Callable[[Path], None],
    facts: dict[str, Any],
    disk: Disk,
) -> None:
    disk.make_folder(beside)
    fill(beside)
    files: dict[str, dict[str, Any]] = {}
    for path in files_of(beside):
        disk.sync_file(path)
        files[path.relative_to(beside).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": digest(path),
        }
    manifest = {"manifest_version": MANIFEST_VERSION, "facts": facts, "files": files}
    disk.write(beside / MANIFEST_FILE, json.dumps(manifest, indent=1, allow_nan=False).encode())
    for inner in [p for p in beside.rglob("*") if p.is_dir()]:
        disk.sync_folder(inner)
    disk.sync_folder(beside)
    if folder.exists():
        disk.remove_folder(folder)
    disk.rename(beside, folder)
    disk.sync_folder(folder.parent)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The facts of a folder whose every byte is what its manifest says.

    Raises CheckpointError that names the first file that is not.
    """
    place = folder / MANIFEST_FILE
    try:
        manifest = json.loads(place.read_bytes())
        version, files, facts = (manifest[k] for k in ("manifest_version", "files", "facts"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(place, "there is no readable manifest") from error
    if version != MANIFEST_VERSION:
        raise CheckpointError(
            f"its manifest has version {version}, this is for version {MANIFEST_VERSION}",
            where=str(place),
            remedy="use the version of Truing that wrote it",
        )
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise _damaged(path, "the file is missing")
        if path.stat().st_size != expected["bytes"]:
            raise _damaged(path, f"{path.stat().st_size:,} bytes, not {expected['bytes']:,}")
        if digest(path) != expected["sha256"]:
            raise _damaged(path, "its SHA-256 is not the one it was written with")
    found: dict[str, Any] = facts
    return found


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(what, where=str(path), remedy="an earlier checkpoint may be whole")


def files_of(folder: Path) -> Iterator[Path]:
    """Every file in a folder, in an order that does not change."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
