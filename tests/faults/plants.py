"""Faults to plant in a run, by what they do. Each is a function without arguments once bound with
`functools.partial`, called in the run's own process before the command starts; it replaces one
thing and calls `fire()` when the fault happens."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

from harness import fire

OPERATIONS = ("write", "write_by", "append", "sync_file", "sync_folder", "make_folder", "rename")


def kill_after_step(number: int, sent: int = signal.SIGKILL, times: int = 1) -> None:
    """A signal to itself once the line of step `number` is written."""
    from truing.rundir import RunDirectory

    append = RunDirectory.append_metrics

    def then(self, step, metrics):
        append(self, step, metrics)
        if step == number:
            fire()
            for _ in range(times):
                os.kill(os.getpid(), sent)

    RunDirectory.append_metrics = then


def kill_in_rollout(number: int, sent: int = signal.SIGKILL) -> None:
    """A signal to itself while the completions of the `number`-th drawing are drawn."""
    from truing.rollouts.slots import PromptBlock

    begin, drawn = PromptBlock.__init__, [0]

    def then(self, *args, **kwargs):
        drawn[0] += 1
        begin(self, *args, **kwargs)
        if drawn[0] == number:
            fire()
            os.kill(os.getpid(), sent)

    PromptBlock.__init__ = then


def in_the_background() -> None:
    """As a shell without job control starts what ends in &."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def at_operation(number: int, happens: Callable[[], None]) -> None:
    """Something before the `number`-th operation of the disk, or between two halves of a write."""
    from truing.storage import Disk

    count = itertools.count()

    def wrapped(name, original):
        def operate(self, *args):
            for half in (False, True) if name.startswith("write") else (False,):
                if half and name == "write":
                    args[0].write_bytes(args[1][: len(args[1]) // 2])
                elif half:
                    args[0](args[1])
                    os.truncate(args[1], args[1].stat().st_size // 2)
                if next(count) == number:
                    fire()
                    happens()
            return original(self, *args)

        return operate

    for name in OPERATIONS:
        setattr(Disk, name, wrapped(name, getattr(Disk, name)))


def power_cut(number: int, output: str) -> None:
    """Before the `number`-th operation the machine goes away: of every file below `output` only
    what was synced is left, and the process is gone."""
    from truing.storage import Disk

    synced: dict[str, int] = {}
    write, sync, rename = Disk.write, Disk.sync_file, Disk.rename

    def then_write(self, path, content):
        write(self, path, content)
        synced[str(path)] = len(content)

    def then_sync(self, path):
        sync(self, path)
        synced[str(path)] = path.stat().st_size

    def then_rename(self, old, new):
        rename(self, old, new)
        for name in list(synced):
            if name == str(old) or name.startswith(f"{old}/"):
                synced[str(new) + name.removeprefix(str(old))] = synced.pop(name)

    def cut():
        for path in Path(output).rglob("*"):
            kept = synced.get(str(path), 0)
            if path.is_file() and path.stat().st_size > kept:
                os.truncate(path, kept)
        kill()

    Disk.write, Disk.sync_file, Disk.rename = then_write, then_sync, then_rename
    at_operation(number, cut)


def kill() -> None:
    """Really."""
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def input_output_error() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_from_step(number: int) -> None:
    """No file can grow beyond what it has once step `number` is written: the system's own limit."""
    from truing.rundir import RunDirectory

    append = RunDirectory.append_metrics

    def then(self, step, metrics):
        append(self, step, metrics)
        if step == number:
            fire()
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))

    RunDirectory.append_metrics = then


def no_space_from_step(number: int) -> None:
    """ENOSPC from whatever writes once step `number` is written."""
    from truing.rundir import RunDirectory
    from truing.storage import Disk

    append = RunDirectory.append_metrics

    def full(self, *args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def then(self, step, metrics):
        append(self, step, metrics)
        if step == number:
            fire()
            Disk.write = Disk.write_by = Disk.append = full

    RunDirectory.append_metrics = then


def folder_vanishes_after_step(number: int, folder: str) -> None:
    """Somebody moves the output away while it is written, once step `number` is."""
    from truing.rundir import RunDirectory

    append = RunDirectory.append_metrics

    def then(self, step, metrics):
        append(self, step, metrics)
        if step == number:
            fire()
            os.rename(folder, folder + "-moved")

    RunDirectory.append_metrics = then


def little_space(free: int) -> None:
    """A disk with so many bytes left."""
    from truing.storage import Disk

    def few(self, path):
        fire()
        return free

    Disk.free_bytes = few
