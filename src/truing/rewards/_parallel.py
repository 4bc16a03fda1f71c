"""Calls that wait, several at a time, in threads that keep no process alive."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Answer = TypeVar("Answer")


def in_threads(
    call: Callable[..., Answer], arguments: Iterable[tuple[Any, ...]], workers: int
) -> list[Answer]:
    """The call's answer for each tuple of arguments, in order.

    The first error ends it: nothing further is begun, and it is raised. concurrent.futures would
    do, but a process cannot end before its threads have worked off their queue.
    """
    waiting = list(arguments)
    answers: dict[int, Answer] = {}
    errors: list[BaseException] = []
    positions = iter(range(len(waiting)))
    one_at_a_time = threading.Lock()

    def work() -> None:
        while not errors:
            with one_at_a_time:
                index = next(positions, None)
            if index is None:
                return
            try:
                answers[index] = call(*waiting[index])
            except BaseException as error:  # raised below, by the thread that waits
                errors.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [answers[index] for index in range(len(waiting))]
