"""Calls in threads: in order, ended by the first error, and nothing that keeps a process alive."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from truing.rewards._parallel import in_threads


def test_answers_are_in_order_and_several_wait_at_a_time():
    together = threading.Barrier(3, timeout=10)

    def double(number):
        if number < 3:
            together.wait()  # passes only if three are there at once
        return 2 * number

    assert in_threads(double, [(n,) for n in range(7)], 3) == [0, 2, 4, 6, 8, 10, 12]
    assert in_threads(double, [], 3) == []


def test_the_first_error_ends_it():
    begun = []

    def fails(number):
        begun.append(number)
        time.sleep(0.01)
        raise ValueError(f"number {number}")

    with pytest.raises(ValueError, match=r"number [01]"):
        in_threads(fails, [(n,) for n in range(100)], 2)
    assert len(begun) <= 4


def test_a_process_ends_though_calls_wait():
    program = """
import threading, time
from truing.rewards._parallel import in_threads
waits = lambda: in_threads(lambda n: time.sleep(60), [(n,) for n in range(9)], 2)
threading.Thread(target=waits, daemon=True).start()
time.sleep(0.2)
"""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, timeout=50)
    assert time.monotonic() - begin < 40
