"""When a run is saved: every so many steps or minutes, and before it stops for a signal.

A signal during a step waits for its end; one that comes while completions are drawn drops the
rollout, which the resumed run draws again, the same. A second signal stops at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from truing.training.checkpoints import State

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class Keeper:
    """Saves between steps, in a thread: a step waits for the copy in memory, not for the disk."""

    place: Callable[[], State] = State
    """Where the source is. Costs nothing: it refers to what it does not copy."""
    capture: Callable[[State], State] = lambda place: place
    """The whole state, given the source's place, in tensors of its own."""
    save: Callable[[int, State], None] = lambda taken, state: None
    """Writes the state after so many steps to disk."""
    every_steps: int | None = None
    every_seconds: float | None = None
    taken: int = 0
    """Steps at the last border between two steps,"""
    at_border: State = field(default_factory=State)
    """and where the source was."""
    saved: int = 0
    """Steps of the newest checkpoint."""
    saved_at: float = field(default_factory=time.monotonic)
    busy: bool = False
    """Whether a step is under way."""
    asked: int | None = None
    """The signal that waits for its end."""
    handlers: dict[int, Any] = field(default_factory=dict)
    writer: threading.Thread | None = None
    failure: BaseException | None = None

    @contextmanager
    def watching(self, taken: int) -> Iterator[None]:
        """Around the loop: signals are ours, and what is being written is finished."""
        self.taken, self.saved, self.at_border = taken, taken, self.place()
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        except KeyboardInterrupt:
            self._ignore_signals()
            if not self.busy:  # else half a step is in the weights: the last checkpoint it is
                self.write(self.taken, wait=True)
            raise
        finally:
            for number, handler in self.handlers.items():
                signal.signal(number, handler)
            self._join()
        self._raise_failure()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step and the line of its metrics, or a save: what must not be cut in two."""
        self.busy = True
        yield
        self.busy = False

    def between(self, taken: int) -> None:
        """At the border behind a step. Raises what saving raised, and KeyboardInterrupt."""
        self.taken, self.at_border = taken, self.place()
        self._raise_failure()
        if self.asked is None and self._due():
            # A signal waits: one that breaks off Thread.join makes Python up to 3.12 take a thread
            # that still writes for one that has ended, and a second one would write beside it.
            with self.step():
                self.write(taken)
        if self.asked is not None:
            self._stop(self.asked)

    def write(self, taken: int, *, wait: bool = False) -> None:
        """Start to write the state at the last border, if it is not written yet."""
        if taken > self.saved:
            self._join()
            state = self.capture(self.at_border)
            self.writer = threading.Thread(target=self._write, args=(taken, state), daemon=True)
            self.writer.start()
            self.saved, self.saved_at = taken, time.monotonic()
        if wait:
            self._join()
            self._raise_failure()

    def _write(self, taken: int, state: State) -> None:
        _give_way()
        try:
            self.save(taken, state)
        except BaseException as error:  # raised again in the thread that trains
            self.failure = error

    def _due(self) -> bool:
        if self.every_steps is not None and self.taken - self.saved >= self.every_steps:
            return True
        if self.every_seconds is None or (self.writer is not None and self.writer.is_alive()):
            return False  # still writing: no step waits for that, and there will be other borders
        return time.monotonic() - self.saved_at >= self.every_seconds

    def _join(self) -> None:
        if self.writer is not None:
            self.writer.join()

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.busy and self.asked is None:
            self.asked = number
        else:
            self._stop(number)

    def _stop(self, number: int) -> None:
        handler = self.handlers[number]
        if callable(handler):
            handler(number, None)  # the command line's own: it knows the exit codes
        raise KeyboardInterrupt

    def _ignore_signals(self) -> None:
        """While the last state is written: a second signal ends the process as it always would."""
        for number in self.handlers:
            signal.signal(number, signal.SIG_DFL)


def _give_way() -> None:
    """This thread takes what those that train leave of the processors: hashing and writing have a
    minute, a step has not. On Linux, where threads have a priority of their own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
