"""The system calls a program may make, by libseccomp: every other is 'operation not permitted'.

Conditions are on arguments in registers only: what a pointer shows can change after the check.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import Any

ALLOWED = """
read write readv writev pread64 pwrite64 preadv pwritev close close_range lseek sendfile
stat lstat fstat newfstatat fstatat64 statx statfs fstatfs access faccessat faccessat2
readlink readlinkat getdents getdents64 getcwd chdir fchdir fsync fdatasync ftruncate
unlink unlinkat rename renameat renameat2 flock fadvise64 umask
dup dup2 dup3 pipe pipe2 poll ppoll select pselect6 eventfd2
epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
mmap munmap mprotect mremap madvise brk
clock_gettime clock_getres gettimeofday time times nanosleep clock_nanosleep
getitimer setitimer alarm pause restart_syscall
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait sigaltstack
getpid gettid getppid getpgrp getpgid getsid getuid geteuid getgid getegid getgroups
getresuid getresgid uname sysinfo getcpu sched_getaffinity sched_yield getrusage
getrlimit setrlimit futex set_robust_list set_tid_address rseq membarrier arch_prctl
getrandom exit exit_group recvfrom getsockname getsockopt
"""
"""Whatever their arguments. Files are Landlock's concern, sizes and times the limits'."""

ALLOW, REFUSE, UNKNOWN = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
EQUAL, MASKED = 4, 7
O_TMPFILE = 0o20000000


class _Compare(ctypes.Structure):
    _fields_ = [
        ("argument", ctypes.c_uint),
        ("how", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    ]


def conditions() -> list[tuple[str, _Compare]]:
    """Calls allowed for some arguments only.

    - No file without a name, and none emptied while it is only read (older Landlocks miss it).
    - fcntl and ioctl without those that send signals or write to terminals.
    - Limits of this very process; signals to itself; a pair of sockets, but no address (asyncio).
    """

    def equal(argument: int, *values: int) -> list[_Compare]:
        return [_Compare(argument, EQUAL, value, 0) for value in values]

    def opening(argument: int) -> list[_Compare]:
        return [
            _Compare(argument, MASKED, O_TMPFILE | os.O_TRUNC, 0),
            _Compare(argument, MASKED, O_TMPFILE | os.O_ACCMODE, os.O_WRONLY),
            _Compare(argument, MASKED, O_TMPFILE | os.O_ACCMODE, os.O_RDWR),
        ]

    dup_flags_and_locks = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030)
    isatty_cloexec_nonblocking = (0x5401, 0x5450, 0x5451, 0x5421)
    rules = {
        "open": opening(1),
        "openat": opening(2),
        "fcntl": equal(1, *dup_flags_and_locks),
        "ioctl": equal(1, *isatty_cloexec_nonblocking),
        "prlimit64": equal(0, 0),
        "tgkill": equal(0, os.getpid()),
        "prctl": equal(0, 15),  # the name of the thread
        "socketpair": equal(0, 1),
        "sendto": equal(4, 0),
    }
    return [(name, rule) for name, those in rules.items() for rule in those]


def filter_of_calls() -> Callable[[], None]:
    """What closes all other calls, from then on. Raises OSError where it cannot be made."""
    library = _library()
    table = library.seccomp_init(REFUSE)
    if not table:
        raise OSError("seccomp_init failed")
    for name in ALLOWED.split():
        _add(library, table, ALLOW, name)
    for name, rule in conditions():
        _add(library, table, ALLOW, name, rule)
    _add(library, table, UNKNOWN, "clone3")  # the C library then asks for clone, and is refused

    def close() -> None:
        failed = library.seccomp_load(table)
        if failed:
            raise OSError(-failed, f"seccomp_load: {os.strerror(-failed)}")

    return close


def _library() -> Any:
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_void_p,
    ]
    library.seccomp_load.argtypes = [ctypes.c_void_p]
    return library


def _add(library: Any, table: int, action: int, name: str, rule: _Compare | None = None) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number < 0:
        return  # this processor has no such call, and what is not listed is refused
    where = None if rule is None else ctypes.byref(rule)
    failed = library.seccomp_rule_add_array(table, action, number, int(rule is not None), where)
    if failed:
        raise OSError(-failed, f"no rule for {name}: {os.strerror(-failed)}")
