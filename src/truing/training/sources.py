"""Where a step's micro-batches come from: rows on disk, or the policy's own rollouts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from truing.batch import Batch
from truing.data.loader import Loader
from truing.data.packing import micro_batches, pack
from truing.groups import TokenGroup
from truing.rollouts.collect import Collector, Rollout

APPROXKL = "policy/approxkl_avg"


@dataclass(frozen=True, slots=True)
class Work:
    """The micro-batches of one step, and what is already known about them."""

    micro_batches: list[Batch]
    metrics: dict[str, float]


class Source(Protocol):
    """An endless or finite supply of steps."""

    @property
    def total_steps(self) -> int:
        """How many steps it has."""

    def __iter__(self) -> Iterator[Work]: ...

    def observe(self, metrics: Mapping[str, float]) -> None:
        """What the step on the last Work measured."""


@dataclass(slots=True)
class Offline:
    """Groups from data, shuffled each epoch, packed, with the columns the objective needs."""

    groups: Sequence[TokenGroup]
    complete: Callable[[Batch, Sequence[TokenGroup]], Batch]
    """Adds what packing cannot know (the reference's log-probs) and moves to the device."""
    batch_size: int
    micro_batch_tokens: int
    epochs: int
    seed: int
    max_steps: int | None = None

    @property
    def loader(self) -> Loader[TokenGroup]:
        return Loader(self.groups, self.batch_size, self.seed)

    @property
    def total_steps(self) -> int:
        steps = self.loader.batches_per_epoch * self.epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def __iter__(self) -> Iterator[Work]:
        left = self.total_steps
        for epoch in range(self.epochs):
            for groups in self.loader.epoch(epoch):
                if not left:
                    return
                yield Work(self.batches(groups), {})
                left -= 1

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Rows come in their order, whatever they taught."""

    def batches(self, groups: Sequence[TokenGroup]) -> list[Batch]:
        """Any groups as completed micro-batches (also used to measure held-out rows)."""
        return [self.complete(pack(part), part) for part in self.parts(groups)]

    def parts(self, groups: Sequence[TokenGroup]) -> list[list[TokenGroup]]:
        """Any groups as the micro-batches they are computed in."""
        return micro_batches(groups, self.micro_batch_tokens)

    def first_epoch(self) -> list[list[TokenGroup]]:
        """The micro-batches of the first pass over the groups, in order, as far as steps go."""
        steps = islice(self.loader.epoch(0), self.total_steps)
        return [part for groups in steps for part in self.parts(groups)]


@dataclass(slots=True)
class OnPolicy:
    """Prompts are drawn, answered by the policy as it is now, and learnt from."""

    prompts: Sequence[TokenGroup]
    collector: Collector
    on_rollout: Callable[[int, Rollout], None]
    """Called with each rollout, to keep its samples."""
    prompts_per_rollout: int
    completions_per_prompt: int
    rollouts: int
    epochs: int
    seed: int
    max_steps: int | None = None
    approxkl_limit: float | None = None
    """Beyond this much of ½ (log ratio)² the rest of a rollout is left out."""
    rollout: int = 0
    """Which rollout is being learnt from."""
    too_far: bool = False
    """Whether the last step went beyond it."""

    def observe(self, metrics: Mapping[str, float]) -> None:
        """How far the policy is from the one that drew the rollout."""
        limit = self.approxkl_limit
        self.too_far = limit is not None and metrics[APPROXKL] > limit

    @property
    def steps_per_rollout(self) -> int:
        per_step = max(1, self.collector.batch_size // self.completions_per_prompt)
        return -(-self.prompts_per_rollout // per_step) * self.epochs

    @property
    def total_steps(self) -> int:
        steps = self.rollouts * self.steps_per_rollout
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def __iter__(self) -> Iterator[Work]:
        left = self.total_steps
        supply = Loader(self.prompts, self.prompts_per_rollout, self.seed).forever()
        for index in range(self.rollouts):
            if not left:
                return
            self.rollout = index
            seed = hash((self.seed, index)) & 0x7FFFFFFF
            rollout = self.collector.collect(next(supply), seed, more=lambda: next(supply))
            self.on_rollout(index, rollout)
            metrics = rollout.metrics
            if not rollout.minibatches:  # nothing to learn from: its numbers are kept all the same
                yield Work([], metrics)
            for minibatch in islice(self._minibatches(rollout, seed), left):
                yield Work(minibatch, metrics)
                metrics = {}
                left -= 1
                if self.too_far:
                    break

    def _minibatches(self, rollout: Rollout, seed: int) -> Iterator[list[Batch]]:
        """Every minibatch once an epoch, in another order each."""
        for epoch in range(self.epochs):
            order = list(range(len(rollout.minibatches)))
            random.Random(f"{seed}/{epoch}").shuffle(order)
            yield from (rollout.minibatches[part] for part in order)
