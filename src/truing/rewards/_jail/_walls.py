"""Walls around the process that raises them: they hold for the rest of its life.

1. Limits (setrlimit): memory, processor time, size of a file, open files, no core file.
2. No privileges: every capability is dropped, none can come back (no_new_privs).
3. Files (Landlock): Python's libraries can be read, one folder can be written, nothing else.
4. System calls (seccomp, an allow-list): no new process or thread, no network or unix socket, no
   signal to others, no change of owner, mode or time of a file, nothing the kernel adds later.

As nothing can be started, what is to be killed is one process. None of the walls needs root, a
namespace or a container. Sources: kernel.org, userspace-api/landlock and seccomp_filter.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import sys
from collections.abc import Iterable

from ._calls import filter_of_calls

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_NO_NEW_PRIVS = 1, 4, 15, 38


class NoWallError(Exception):
    """This machine cannot raise one of the walls: what is missing, and how to get it."""


def raise_walls(
    folder: str | None, *, seconds: float, memory_bytes: int, file_bytes: int, files: int = 32
) -> None:
    """All of them, in the order in which each still allows the next. Raises NoWallError."""
    readable = python_folders()
    _limit(seconds, memory_bytes, file_bytes, files)
    _drop_capabilities()
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_DUMPABLE, 0)
    _prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    try:
        close_calls = filter_of_calls()  # reads a library: before files are closed
        _close_files(readable, folder)
        close_calls()
    except OSError as error:
        raise NoWallError(
            f"system calls cannot be filtered ({error}): install libseccomp (Debian and Ubuntu: "
            "apt install libseccomp2; Fedora, Alpine: libseccomp)"
        ) from error


def python_folders() -> list[str]:
    """What an interpreter reads after its start: its modules and the shared libraries."""
    places = [*sys.path, *(os.path.join(sys.base_prefix, name) for name in ("lib", "lib64"))]
    places += ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"]
    places += ["/usr/share/zoneinfo", "/etc/localtime", "/etc/ld.so.cache", "/dev/urandom"]
    return sorted({place for place in places if os.path.exists(place)})


def _limit(seconds: float, memory_bytes: int, file_bytes: int, files: int) -> None:
    """Hard limits. What cannot be raised again is only what lies below the hard limit of now."""
    wanted = {
        resource.RLIMIT_CPU: math.ceil(seconds) + 1,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: files,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in wanted.items():
        hard = resource.getrlimit(kind)[1]
        least = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (least, least))


def _drop_capabilities() -> None:
    """Without them root is a person like others: limits bind it, and it opens no other's files."""

    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    nothing = (ctypes.c_uint32 * 6)()
    if LIBC.capset(ctypes.byref(Header(0x20080522, 0)), ctypes.byref(nothing)) != 0:
        raise NoWallError(f"capabilities cannot be dropped ({_reason()})")


def _prctl(option: int, value: int) -> None:
    if LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise NoWallError(f"prctl {option} is not allowed ({_reason()})")


def _reason() -> str:
    return os.strerror(ctypes.get_errno())


# Landlock: access rights, and the version of the interface that brought them
READ_FILE, READ_FOLDER, WRITE_FILE, REMOVE_FILE, MAKE_FILE = 1 << 2, 1 << 3, 1 << 1, 1 << 5, 1 << 8
TRUNCATE = 1 << 14
RIGHTS_BY_VERSION = {1: (1 << 13) - 1, 2: 1 << 13, 3: TRUNCATE, 5: 1 << 15}
TCP_RIGHTS, SCOPES = 3, 3
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("tcp", ctypes.c_uint64), ("scopes", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed", ctypes.c_uint64), ("place", ctypes.c_int32)]


def _close_files(readable: Iterable[str], folder: str | None) -> None:
    version = LIBC.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        raise NoWallError(
            f"the kernel has no Landlock ({_reason()}): it needs Linux 5.13 or newer, with "
            "'landlock' in /sys/kernel/security/lsm, and a container that lets it through"
        )
    files = sum(rights for since, rights in RIGHTS_BY_VERSION.items() if since <= version)
    rules = _Ruleset(files, TCP_RIGHTS if version >= 4 else 0, SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = LIBC.syscall(CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        raise NoWallError(f"Landlock refuses its rules ({_reason()})")
    for place in readable:
        _allow(ruleset, place, READ_FILE | READ_FOLDER if os.path.isdir(place) else READ_FILE)
    _allow(ruleset, "/dev/null", READ_FILE | WRITE_FILE)
    if folder is not None:
        own = READ_FILE | READ_FOLDER | WRITE_FILE | REMOVE_FILE | MAKE_FILE | TRUNCATE & files
        _allow(ruleset, folder, own)
    if LIBC.syscall(RESTRICT_SELF, ruleset, 0) != 0:
        raise NoWallError(f"Landlock cannot be switched on ({_reason()})")
    os.close(ruleset)


def _allow(ruleset: int, place: str, rights: int) -> None:
    handle = os.open(place, os.O_PATH | os.O_CLOEXEC)
    rule = _Beneath(rights, handle)
    failed = LIBC.syscall(ADD_RULE, ruleset, 1, ctypes.byref(rule), 0)
    os.close(handle)
    if failed:
        raise NoWallError(f"Landlock refuses a rule for {place} ({_reason()})")
