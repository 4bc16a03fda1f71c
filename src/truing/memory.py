"""Memory that runs out: whether an error says so, and how the same work is done with less.

A micro-batch that does not fit is divided between its groups, its parts again, until they fit. What
objectives return are sums that are divided once, so nothing changes but rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from truing.batch import Batch
from truing.errors import ResourceError

Result = TypeVar("Result")
PHRASES = ("not enough memory", "out of memory", "can't allocate memory", "ALLOC_FAILED")
"""How allocators without an exception of their own say it: CPU, MPS, cuBLAS."""


def is_memory_error(error: BaseException) -> bool:
    """Whether an allocation failed, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in PHRASES)


def attempted(work: Callable[[], Result]) -> Result | None:
    """What `work` returns, or None if memory ran out. By then the error is gone, and with it the
    frames that held on to what had been computed."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
    return None


@contextmanager
def memory_errors(where: str, remedy: str) -> Iterator[None]:
    """Around work that cannot be done with less. Raises ResourceError where memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
        raise ResourceError("out of memory", where=where, remedy=remedy) from error


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


@dataclass(slots=True)
class Memory:
    """What has been learnt about how much fits, and whom to tell."""

    say: Callable[[str], None] = _warn
    halved: int = 0
    """How often something was halved, since it was last `taken`."""
    too_large: int | None = None
    """Tokens of the smallest micro-batch that did not fit."""
    rows: int | None = None
    """Completions that can be drawn at once, once more than that did not fit."""

    def taken(self) -> int:
        """`halved`, which begins at 0 again."""
        halved, self.halved = self.halved, 0
        return halved

    def divided(self, batches: Iterable[Batch]) -> list[Batch]:
        """The batches, those halved that are as large as one that did not fit."""
        found: list[Batch] = []
        for batch in batches:
            large = self.too_large is not None and batch.size_T >= self.too_large
            halves = batch.halves() if large else None
            found += [batch] if halves is None else self.divided(halves)
        return found

    def halves(self, batch: Batch) -> tuple[Batch, Batch]:
        """The halves of a batch that did not fit. Raises ResourceError for a single group."""
        halves = batch.halves()
        if halves is None:
            raise ResourceError(
                f"out of memory with a single group of {batch.size_T:,} tokens, which cannot be "
                "divided",
                where="micro-batch",
                remedy="shorten it (max_length, max_completion_length, num_generations), turn on "
                "gradient_checkpointing, or train an adapter (model.lora)",
            )
        self.halved += 1
        if self.too_large is None:
            self.say(
                f"out of memory with a micro-batch of {batch.size_T:,} tokens: it is computed in "
                "halves (the same step, more slowly; micro_batch_tokens sets the size)"
            )
        self.too_large = min(batch.size_T, self.too_large or batch.size_T)
        return halves

    def in_parts(self, compute: Callable[[Batch], Result], batch: Batch) -> list[Result]:
        """`compute` of a batch without gradients: whole if it fits, else of its parts in order."""
        found: list[Result] = []
        waiting = self.divided([batch])
        while waiting:
            part = waiting.pop(0)
            result = attempted(lambda part=part: compute(part))  # type: ignore[misc]
            if result is None:
                waiting[:0] = self.halves(part)
            else:
                found.append(result)
        return found

    def fewer_rows(self, rows: int) -> int:
        """How many completions to draw at once after `rows` did not fit. Raises ResourceError."""
        if rows == 1:
            raise ResourceError(
                "out of memory while one completion is drawn",
                where="sampler",
                remedy="lower max_completion_length, or use a smaller model",
            )
        self.halved += 1
        self.rows = rows // 2
        self.say(
            f"out of memory while {rows:,} completions are drawn at once: from here on "
            f"{self.rows:,} (the same text, more slowly; sampling_batch_size sets the number)"
        )
        return self.rows
