"""Freed memory stays with the process where glibc is there to keep it."""

from __future__ import annotations

import subprocess
import sys

import pytest

TOUCH = """
import resource, sys, torch
from truing.models.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(10):
    torch.empty(16 * 2**20).fill_(1)  # 64 MiB, freed at once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.empty(16 * 2**20).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    done = subprocess.run(
        [sys.executable, "-c", TOUCH, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_pages_are_not_handed_back_between_allocations():
    kept, plain = faults("keep"), faults("plain")
    assert plain > 100_000, "the machine hands pages back in big pieces: nothing to see here"
    assert kept < plain / 4
