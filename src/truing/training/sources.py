"""Where a step's micro-batches come from: rows on disk, or the policy's own rollouts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from torch import Tensor

from truing.batch import Batch
from truing.data.loader import Loader, Supply
from truing.data.packing import micro_batches, pack
from truing.groups import TokenGroup
from truing.rollouts.collect import Collector, Rollout
from truing.rundir import ROLLOUT_FILE
from truing.training.checkpoints import State

APPROXKL = "policy/approxkl_avg"


@dataclass(frozen=True, slots=True)
class Work:
    """The micro-batches of one step, and what is already known about them."""

    micro_batches: list[Batch]
    metrics: dict[str, float]
    rows: tuple[str, ...] = ()
    """Where its rows came from: `file:line`, or the file in the run that shows their rollout."""


class Source(Protocol):
    """An endless or finite supply of steps."""

    @property
    def total_steps(self) -> int:
        """How many steps it has."""

    def __iter__(self) -> Iterator[Work]: ...

    def observe(self, metrics: Mapping[str, float]) -> None:
        """What the step on the last Work measured."""

    def state(self) -> State:
        """Where it is, between two steps."""

    def restore(self, saved: State) -> None:
        """Go on from a `state`: iterating begins with the step after it."""


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
    given: int = 0
    """Steps handed out so far."""

    @property
    def loader(self) -> Loader[TokenGroup]:
        return Loader(self.groups, self.batch_size, self.seed)

    @property
    def total_steps(self) -> int:
        steps = self.loader.batches_per_epoch * self.epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def __iter__(self) -> Iterator[Work]:
        steps = (groups for epoch in range(self.epochs) for groups in self.loader.epoch(epoch))
        for groups in islice(steps, self.given, self.total_steps):
            self.given += 1
            yield Work(self.batches(groups), {}, tuple(group.where for group in groups))

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Rows come in their order, whatever they taught."""

    def state(self) -> State:
        return State({"given": self.given})

    def restore(self, saved: State) -> None:
        self.given = saved.numbers["given"]

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
    given: int = 0
    """Steps handed out so far,"""
    given_of_rollout: int = 0
    """and of them those of this rollout."""
    minibatches: list[list[Batch]] | None = None
    """What the rollout is learnt from; None between two rollouts."""
    supply: Supply[TokenGroup] = field(init=False)

    def __post_init__(self) -> None:
        self.supply = Supply(self.prompts, self.prompts_per_rollout, self.seed)

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
        for index in range(self.rollout, self.rollouts):
            if self.given >= self.total_steps:
                return
            self.rollout = index
            seed = hash((self.seed, index)) & 0x7FFFFFFF
            metrics: dict[str, float] = {}
            if self.minibatches is None:
                metrics = self._collect(index, seed)
                if not self.minibatches:  # nothing to learn from: its numbers are kept all the same
                    yield Work([], metrics)
            for minibatch in self._left(seed):
                if self.too_far or self.given >= self.total_steps:
                    break
                self.given, self.given_of_rollout = self.given + 1, self.given_of_rollout + 1
                yield Work(minibatch, metrics, (ROLLOUT_FILE.format(index=index),))
                metrics = {}
            self.minibatches, self.given_of_rollout, self.too_far = None, 0, False

    def _collect(self, index: int, seed: int) -> dict[str, float]:
        """Draw the next rollout; its metrics."""
        rollout = self.collector.collect(next(self.supply), seed, more=lambda: next(self.supply))
        self.on_rollout(index, rollout)
        self.minibatches = rollout.minibatches
        return rollout.metrics

    def _left(self, seed: int) -> Iterator[list[Batch]]:
        """Every minibatch once an epoch, in another order each, less those that were handed out."""
        assert self.minibatches is not None
        orders = []
        for epoch in range(self.epochs):
            order = list(range(len(self.minibatches)))
            random.Random(f"{seed}/{epoch}").shuffle(order)
            orders += order
        return (self.minibatches[part] for part in orders[self.given_of_rollout :])

    def state(self) -> State:
        """The place, the collector's, and the rollout that is being learnt from."""
        kept = {} if self.minibatches is None else kept_batches(self.minibatches)
        return State(
            {
                "rollout": self.rollout,
                "given": self.given,
                "given_of_rollout": self.given_of_rollout,
                "too_far": self.too_far,
                "drawn": self.supply.drawn,
                "collector": self.collector.state(),
                "sizes": None if self.minibatches is None else [len(m) for m in self.minibatches],
            },
            {"rollout": kept} if kept else {},
        )

    def restore(self, saved: State) -> None:
        numbers = saved.numbers
        for name in ("rollout", "given", "given_of_rollout", "too_far"):
            setattr(self, name, numbers[name])
        self.supply.skip_to(numbers["drawn"])
        self.collector.restore(numbers["collector"])
        if numbers["sizes"] is not None:
            kept = saved.tensors.get("rollout", {})
            self.minibatches = batches_kept(kept, numbers["sizes"], self.collector.place)


def kept_batches(minibatches: Sequence[Sequence[Batch]]) -> dict[str, Tensor]:
    """Batches as named tensors, less what is computed from them and the weights alone."""
    flat = [batch for minibatch in minibatches for batch in minibatch]
    return {
        f"{number}/{name}": tensor
        for number, batch in enumerate(flat)
        for name, tensor in batch.without("frozen_TH").tensors().items()
    }


def batches_kept(
    kept: Mapping[str, Tensor], sizes: Sequence[int], place: Callable[[Batch], Batch]
) -> list[list[Batch]]:
    """The minibatches that `kept_batches` kept, `sizes` micro-batches each, placed again."""
    by_number: dict[int, dict[str, Tensor]] = {}
    for key, tensor in kept.items():
        number, _, name = key.partition("/")
        by_number.setdefault(int(number), {})[name] = tensor
    flat = (place(Batch.of_tensors(by_number[number])) for number in sorted(by_number))
    return [list(islice(flat, size)) for size in sizes]
