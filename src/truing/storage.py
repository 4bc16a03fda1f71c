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
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from truing.errors import CheckpointError, ResourceError

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 1
CHUNK = 1 << 20
HALF_WRITTEN = re.compile(r"\.(.+\.)?\d+\.(tmp|partial)")
"""What files and folders are called until they are whole: .NAME.PID.tmp, .NAME.PID.partial."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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

    def write_by(self, write: Callable[[Path], None], path: Path) -> None:
        """A new file that `write` writes itself; on the disk after `sync_file`."""
        write(path)

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
        """In one that is there: a run whose folder was taken away must not begin another."""
        path.mkdir()

    def rename(self, old: Path, new: Path) -> None:
        old.replace(new)

    def append(self, path: Path, content: bytes) -> None:
        """More at the end of a file; on the disk after `sync_file`."""
        with path.open("ab") as file:
            file.write(content)

    def release(self, path: Path) -> None:
        """The memory that the kernel keeps a file in is free for the next one: fresh pages cost
        more than all else about a write. What is not on the disk yet stays. Linux only."""
        if sys.platform == "linux":
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def remove_folder(self, path: Path) -> None:
        shutil.rmtree(path)

    def free_bytes(self, path: Path) -> int:
        return shutil.disk_usage(path).free


DISK = Disk()


def cache_folder() -> Path:
    """Where what can be made again is kept: $TRUING_CACHE, or the user's cache folder."""
    if "TRUING_CACHE" in os.environ:
        return Path(os.environ["TRUING_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "truing"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong while `path` is written, as a ResourceError that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        full = number in FULL or "No space left" in str(error) or "File too large" in str(error)
        do = "free some space" if full else "make the folder writable"
        raise ResourceError(
            f"cannot be written ({getattr(error, 'strerror', None) or error})",
            where=str(path),
            remedy=f"{do} and --resume: what was saved before is untouched",
        ) from error


def write_file(path: Path, content: bytes) -> None:
    """Replace `path` whole: a reader finds the old content or the new one, also after a power cut.

    Raises ResourceError if it cannot be written; the old content is still there then.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(exist_ok=True)  # not parents: see Disk.make_folder
            DISK.write(beside, content)
            DISK.rename(beside, path)
            DISK.sync_folder(path.parent)
        finally:
            beside.unlink(missing_ok=True)


def write_folder(
    folder: Path,
    fill: Callable[[Path], Iterable[Path]],
    facts: dict[str, Any],
    *,
    needs_bytes: int = 0,
    disk: Disk = DISK,
) -> None:
    """Make `folder` hold what `fill` writes into an empty one, and a manifest with `facts`.

    `fill` may yield files that are whole: each is on the disk, and in the manifest, before the
    next one is asked for. The others follow when it is done.

    Until the last rename no reader sees it; a folder of that name that is there already is
    replaced after it. Raises ResourceError if the disk is full, cannot be written, or has less
    than `needs_bytes` free (nothing is written then).
    """
    with writing(folder):
        free = disk.free_bytes(folder.parent)
    if free < needs_bytes:
        raise ResourceError(
            f"{needs_bytes:,} bytes are needed, {free:,} are free",
            where=str(folder.parent),
            remedy="free some space, or lower save_total_limit; then --resume",
        )
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    with writing(folder):
        try:
            disk.make_folder(beside)
            _seal(beside, _each_once(beside, fill), facts, disk)
            if folder.exists():
                disk.remove_folder(folder)
            disk.rename(beside, folder)
            disk.sync_folder(folder.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def write_checked(path: Path, content: bytes, disk: Disk = DISK) -> None:
    """A new file with this content, read back. Raises ResourceError if it is something else."""
    disk.write(path, content)
    if path.read_bytes() != content:
        raise read_back_differs(path)


def read_back_differs(path: Path, what: str = "") -> ResourceError:
    """What was just written is not what is read there."""
    return ResourceError(
        f"cannot be written: what is read back is something else{what and f' ({what})'}",
        where=str(path),
        remedy="the disk fails, or somebody else writes there; --resume goes on from the "
        "checkpoint before",
    )


def move_into(folder: Path, fill: Callable[[Path], None]) -> None:
    """Put the files that `fill` writes into an empty folder among those of `folder`, each whole."""
    beside = folder / f".{os.getpid()}.partial"
    with writing(folder):
        try:
            DISK.make_folder(beside)
            fill(beside)
            for path in list(files_of(beside)):
                DISK.sync_file(path)
                place = folder / path.relative_to(beside)
                place.parent.mkdir(parents=True, exist_ok=True)
                DISK.rename(path, place)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what processes that are gone left half-written, however deep. Only for whoever has
    the folder for itself."""
    for path in [path for path in folder.rglob(".*") if HALF_WRITTEN.fullmatch(path.name)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # it may have lain in a folder that is gone by now


def seal(folder: Path, facts: dict[str, Any], *, without: Callable[[Path], bool]) -> None:
    """Files of `folder`, but for those of which `without` is true, are on the disk, and
    manifest.json says which bytes they are."""
    with writing(folder):
        _seal(folder, [path for path in files_of(folder) if not without(path)], facts, DISK)


def _each_once(folder: Path, fill: Callable[[Path], Iterable[Path]]) -> Iterator[Path]:
    """What `fill` yields, then what else it wrote."""
    yielded = set()
    for path in fill(folder):
        yielded.add(path)
        yield path
    yield from (path for path in files_of(folder) if path not in yielded)


def _seal(folder: Path, paths: Iterable[Path], facts: dict[str, Any], disk: Disk) -> None:
    files: dict[str, dict[str, Any]] = {}
    for path in paths:
        _open_as_its_folder(path)
        disk.sync_file(path)
        files[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": digest(path),
        }
    manifest = {"manifest_version": MANIFEST_VERSION, "facts": facts, "files": files}
    content = json.dumps(manifest, indent=1, allow_nan=False).encode()
    write_checked(folder / MANIFEST_FILE, content, disk)
    for inner in sorted({(folder / name).parent for name in files} | {folder}):
        disk.sync_folder(inner)


def _open_as_its_folder(path: Path) -> None:
    """Whoever may read the folder may read the file. safetensors writes for the owner alone: a
    server under another account could not open what was trained."""
    mode, of_folder = (stat.S_IMODE(place.stat().st_mode) for place in (path, path.parent))
    if mode != of_folder & 0o666:
        path.chmod(of_folder & 0o666)


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
