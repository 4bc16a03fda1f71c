"""Steps over rows that the policy makes itself: drawn, scored, curated, then learnt from offline.

prompts -> draw (-> reference draws) -> score -> curate -> arrange -> pack, reference -> step
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from pydantic import TypeAdapter
from torch import Tensor

from truing.batch import Batch, Metric, combine, mean_of
from truing.data.loader import Loader, Supply
from truing.data.packing import micro_batches, pack
from truing.groups import FinishReason, TokenGroup
from truing.rollouts.collect import Rollout, Scorer, reward_metrics, with_scores
from truing.rollouts.curation.base import Curation
from truing.training.checkpoints import State
from truing.training.sources import Work

ROWS = TypeAdapter(list[TokenGroup])
Draw = Callable[[Sequence[TokenGroup], int], list[TokenGroup]]
"""Prompts and a seed -> groups with drawn completions."""


@dataclass(slots=True)
class Online:
    """Prompts are drawn, answered, and made into rows of the kind an offline objective needs."""

    prompts: Sequence[TokenGroup]
    draw: Draw
    score: Scorer
    curation: Curation
    arrange: Callable[[Sequence[TokenGroup], int], list[TokenGroup]]
    """Curated rows, and a seed, as the objective learns from them."""
    complete: Callable[[Batch, Sequence[TokenGroup]], Batch]
    """Adds what packing cannot know (the reference's log-probs) and moves to the device."""
    on_rollout: Callable[[int, Rollout], None]
    """Called with each rollout, to keep its samples."""
    prompts_per_rollout: int
    completions_per_prompt: int
    rollouts: int
    batch_size: int
    micro_batch_tokens: int
    epochs: int
    seed: int
    max_steps: int | None = None
    drift: Callable[[Sequence[TokenGroup]], Metric] | None = None
    """How far the policy is from the reference on what it drew; None without a reference."""
    draw_reference: Draw | None = None
    """The same for the reference, if the curation compares with it."""
    missing_eos_penalty: float | None = None
    sync_reference: Callable[[], None] | None = None
    """Makes the policy the reference."""
    sync_every: int | None = None
    """After how many rollouts; None: never."""
    rollout: int = 0
    """Which rollout is being learnt from."""
    given: int = 0
    """Steps handed out so far,"""
    given_of_rollout: int = 0
    """and of them those of this rollout."""
    rows: list[TokenGroup] | None = None
    """What the rollout is learnt from; None between two rollouts."""
    supply: Supply[TokenGroup] = field(init=False)

    def __post_init__(self) -> None:
        self.supply = Supply(self.prompts, self.prompts_per_rollout, self.seed)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Rows are learnt from in their order, whatever they taught."""

    @property
    def total_steps(self) -> int:
        """How many steps there are if every group gives all the rows it can; ties take some."""
        rows = self.prompts_per_rollout * self.curation.most(self.completions_per_prompt)
        steps = self.rollouts * -(-rows // self.batch_size) * self.epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def __iter__(self) -> Iterator[Work]:
        for index in range(self.rollout, self.rollouts):
            if self.given >= self.total_steps:
                return
            self.rollout = index
            seed = hash((self.seed, index)) & 0x7FFFFFFF
            metrics: dict[str, float] = {}
            if self.rows is None:
                metrics = self._next_rollout(index, seed)
                if not self.rows:  # nothing to learn from: its numbers are kept all the same
                    yield Work([], metrics)
            for minibatch in islice(self._minibatches(seed), self.given_of_rollout, None):
                if self.given >= self.total_steps:
                    break
                self.given, self.given_of_rollout = self.given + 1, self.given_of_rollout + 1
                places = tuple(group.where for group in minibatch)
                yield Work(self.batches(minibatch), metrics, places)
                metrics = {}
            self.rows, self.given_of_rollout = None, 0

    def _next_rollout(self, index: int, seed: int) -> dict[str, float]:
        """Draw and curate; the metrics of it."""
        self.rows, rollout = self.collect(next(self.supply), seed)
        if index and self.sync_every and not index % self.sync_every:
            assert self.sync_reference is not None
            self.sync_reference()  # after the KL since it last moved was measured
        self.on_rollout(index, rollout)
        return rollout.metrics

    def state(self) -> State:
        """The place, and the rows that are being learnt from."""
        return State(
            {
                "rollout": self.rollout,
                "given": self.given,
                "given_of_rollout": self.given_of_rollout,
                "drawn": self.supply.drawn,
                "rows": None if self.rows is None else ROWS.dump_python(self.rows, mode="json"),
            }
        )

    def restore(self, saved: State) -> None:
        numbers = saved.numbers
        for name in ("rollout", "given", "given_of_rollout"):
            setattr(self, name, numbers[name])
        self.supply.skip_to(numbers["drawn"])
        rows = numbers["rows"]
        self.rows = None if rows is None else ROWS.validate_python(rows)

    def collect(self, prompts: Sequence[TokenGroup], seed: int) -> tuple[list[TokenGroup], Rollout]:
        """The rows of one rollout, and the rollout they were made of."""
        drawn = self.draw(prompts, seed)
        facts = [_shape(drawn)]
        if self.drift is not None:
            facts.append({"objective/kl": self.drift(drawn)})
        if self.draw_reference is not None:
            drawn = _beside(drawn, self.draw_reference(prompts, hash((seed, 1)) & 0x7FFFFFFF))
        scores = self.score(drawn)
        remaining = iter(scores.values)
        scored = [with_scores(g, [next(remaining) for _ in g.completions]) for g in drawn]
        scored = [group for group in scored if group.completions]
        facts += [reward_metrics([scores]), {"objective/scores": mean_of(_own_scores(scored))}]
        rows, counted = self.curation([self._penalised(group) for group in scored], seed)
        facts.append(counted)
        arranged = self.arrange(rows, seed) if rows else []
        return arranged, Rollout([], combine(facts), scored)

    def batches(self, rows: Sequence[TokenGroup]) -> list[Batch]:
        """Rows as completed micro-batches."""
        parts = micro_batches(rows, self.micro_batch_tokens)
        return [self.complete(pack(part), part) for part in parts]

    def _minibatches(self, seed: int) -> Iterator[list[TokenGroup]]:
        """Every row once an epoch, in another order each."""
        if not self.rows:
            return
        loader = Loader(self.rows, self.batch_size, seed)
        for epoch in range(self.epochs):
            yield from loader.epoch(epoch)

    def _penalised(self, group: TokenGroup) -> TokenGroup:
        """The group with less for completions that were cut, if that is asked for."""
        penalty = self.missing_eos_penalty
        if penalty is None:
            return group
        completions = tuple(
            replace(completion, score=score - penalty * (completion.finish is FinishReason.LENGTH))
            for completion, score in zip(group.completions, group.scores, strict=True)
        )
        return replace(group, completions=completions)


def _beside(groups: Sequence[TokenGroup], theirs: Sequence[TokenGroup]) -> list[TokenGroup]:
    """Each group with the reference's completions after its own."""
    return [
        replace(
            group,
            completions=(
                *group.completions,
                *(replace(completion, of_reference=True) for completion in other.completions),
            ),
        )
        for group, other in zip(groups, theirs, strict=True)
    ]


def _own_scores(groups: Sequence[TokenGroup]) -> Tensor:
    """The reward's own numbers for what the policy drew."""
    return torch.tensor(
        [
            score
            for group in groups
            for completion, score in zip(group.completions, group.scores, strict=True)
            if not completion.of_reference
        ]
    )


def _shape(groups: Sequence[TokenGroup]) -> dict[str, Metric]:
    """How long completions are, and how many were cut."""
    drawn = [completion for group in groups for completion in group.completions]
    cut = torch.tensor([completion.finish is FinishReason.LENGTH for completion in drawn])
    lengths = torch.tensor([float(len(completion.ids)) for completion in drawn])
    return {
        "completions/clipped_ratio": mean_of(cut),
        "completions/mean_length": mean_of(lengths),
    }
