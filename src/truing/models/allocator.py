"""Memory that is freed stays with the process: on Linux CPUs a step is a quarter to a third faster.

A training step allocates and frees the same activations over and over. glibc hands blocks above
its threshold straight back to the kernel, which clears every page again when they are asked for
the next time. The worth of this is measured by bench/ladder.py.
"""

from __future__ import annotations

import ctypes
import functools
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_LARGEST = (2**30, 2**25)
"""Blocks up to 1 GiB come from the heap that is kept; an older glibc takes 32 MiB at most."""
_PAD = 2**26
"""The heap grows by this much more than is asked for, so that a block fits where it was before."""


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed. False where there is no glibc (macOS, Windows, musl).

    The peak does not rise by it: the next allocation is served from what was kept.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    threshold = any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST)
    kept = [mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, _PAD)]
    return threshold and all(kept)
