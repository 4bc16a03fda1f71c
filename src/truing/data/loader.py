"""A seeded order over groups: the same seed gives the same steps on every machine."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Loader(Generic[Item]):
    """Shuffles once an epoch and hands out `batch_size` items at a time.

    The order depends on the seed and the epoch only. The last batch of an epoch holds what is
    left, so every item is seen exactly once an epoch.
    """

    def __init__(self, items: Sequence[Item], batch_size: int, seed: int) -> None:
        assert items, "a loader needs something to load"
        self.items, self.batch_size, self.seed = items, batch_size, seed

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self.items) // self.batch_size)

    def epoch(self, number: int) -> Iterator[list[Item]]:
        """The batches of one epoch, in order."""
        order = list(range(len(self.items)))
        random.Random(f"{self.seed}/{number}").shuffle(order)
        for start in range(0, len(order), self.batch_size):
            yield [self.items[i] for i in order[start : start + self.batch_size]]

    def forever(self) -> Iterator[list[Item]]:
        """Full batches across epoch borders, without end: what rollouts draw prompts from."""
        waiting: list[Item] = []
        number = 0
        while True:
            for batch in self.epoch(number):
                waiting += batch
                while len(waiting) >= self.batch_size:
                    yield waiting[: self.batch_size]
                    waiting = waiting[self.batch_size :]
            number += 1


class Supply(Generic[Item]):
    """Full batches across epoch borders, without end, from any place on."""

    def __init__(self, items: Sequence[Item], batch_size: int, seed: int, drawn: int = 0) -> None:
        self._batches = Loader(items, batch_size, seed).forever()
        self.drawn = 0
        """How many batches were taken."""
        self.skip_to(drawn)

    def __iter__(self) -> Iterator[list[Item]]:
        return self

    def __next__(self) -> list[Item]:
        self.drawn += 1
        return next(self._batches)

    def skip_to(self, drawn: int) -> None:
        """Go on from behind the first `drawn` batches."""
        while self.drawn < drawn:
            next(self)
