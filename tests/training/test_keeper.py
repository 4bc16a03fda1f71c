"""What saves a run between its steps."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from truing.training.keeper import Keeper


def three_steps(keeper):
    with keeper.watching(0):
        for taken in range(1, 4):
            keeper.between(taken)


def test_a_signal_that_comes_while_a_step_waits_for_a_save_starts_no_second_one_beside_it():
    writing, most, saved = [], [], []

    def save(taken, state):
        writing.append(taken)
        most.append(len(writing))
        time.sleep(0.4)
        writing.remove(taken)
        saved.append(taken)

    keeper = Keeper(save=save, every_steps=1)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(KeyboardInterrupt):
        three_steps(keeper)
    assert max(most) == 1
    assert saved == [1, 2]
