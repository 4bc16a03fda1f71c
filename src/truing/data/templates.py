"""Rendering a chat template, which is a program that came with a model from a stranger.

transformers renders in jinja's ImmutableSandboxedEnvironment: no import, no file, no attribute
that begins with an underscore. What a sandbox does not hold is time, so that is held here, and
the size of what has to be compiled.

Why a timer around every rendering, and not one trial in a process of its own: a template may loop
on some rows only, so the trial shows nothing about the next row; and a process for every row costs
more than the rows. SIGALRM ends loops and also arithmetic on huge numbers, costs microseconds, and
is put back as it was. Where it does not exist (Windows) or does not reach (other threads), a timer
thread raises in the rendering thread, which ends loops alone. Memory is not limited.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2.exceptions import SecurityError

from truing.errors import ModelError

SECONDS = 3.0
"""For one conversation. Rendering takes about a ten-thousandth of it."""
LARGEST = 1 << 18
"""Characters of a template. The largest published ones have about 30,000."""


def render(tokenizer: Any, turns: Sequence[Mapping[str, Any]], **options: Any) -> Any:
    """`apply_chat_template`, for at most SECONDS.

    Raises ModelError for a template that is too large, takes longer or tries to leave the sandbox,
    and whatever else the template raises."""
    size = len(str(tokenizer.chat_template))
    if size > LARGEST:
        raise ModelError(
            f"the chat template has {size:,} characters, {LARGEST:,} at most are rendered",
            where=place(tokenizer),
            remedy="use a model with a template of a usual size",
        )
    try:
        with at_most(SECONDS):
            return tokenizer.apply_chat_template(list(turns), **options)
    except _TooLongError as error:
        raise ModelError(
            f"the chat template does not come to an end: stopped after {SECONDS:g} s",
            where=place(tokenizer),
            remedy="correct the template, and ask where it came from",
        ) from error
    except (SecurityError, RecursionError, MemoryError) as error:
        raise ModelError(
            f"the chat template is not safe to render: {error or type(error).__name__}",
            where=place(tokenizer),
            remedy="correct the template, and ask where it came from",
        ) from error


def place(tokenizer: Any) -> str:
    """Where a tokenizer's template stands, for messages."""
    file = Path(tokenizer.name_or_path, "chat_template.jinja")
    return str(file) if file.is_file() else f"{tokenizer.name_or_path}, chat_template"


class _TooLongError(BaseException):
    """Time is up. No `except Exception` on the way holds it back."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises _TooLongError in the block once it has taken so long."""
    main = threading.current_thread() is threading.main_thread()
    limited = _by_signal if main and hasattr(signal, "setitimer") else _by_thread
    with limited(seconds):
        yield


@contextmanager
def _by_signal(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _TooLongError

    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)  # someone else's goes on
        signal.signal(signal.SIGALRM, handler)


@contextmanager
def _by_thread(seconds: float) -> Iterator[None]:
    thread, lock, over = threading.get_ident(), threading.Lock(), False

    def stop() -> None:
        with lock:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread), ctypes.py_object(_TooLongError)
                )

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            over = True
        timer.cancel()
