"""Our own decoding: queue -> prefill -> choose -> finish -> decode, for all rows at once.

There is a fixed number of slots. When enough rows have ended they leave together, and the next
completions of the queue take their places; prompts not computed yet are prefilled together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from truing.groups import TokenCompletion, TokenGroup
from truing.models.network import Network
from truing.rollouts.choosing import Chooser
from truing.rollouts.engines.base import SamplingSettings
from truing.rollouts.rows import Job, Rows, answered
from truing.rollouts.slots import PromptBlock, Slots

REFILL_BELOW = 0.75
"""Ended rows leave, and others come in, once fewer than this share go on. Waiting a little lets
several prompts be computed in one pass; rows that have ended are computed for nothing."""
PREFILL_TOKENS = 2048
"""Prompt tokens computed at once."""


@torch.inference_mode()
def draw(
    network: Network,
    prompts: Sequence[TokenGroup],
    settings: SamplingSettings,
    *,
    completions: int,
    seed: int,
) -> list[TokenGroup]:
    """See `Engine`. The layout of the key-value storage, and its size, are in slots.py."""
    drawing = _Drawing(network, [p.prompt_ids for p in prompts], settings, completions, seed)
    return answered(prompts, drawing.run(), completions)


class _Drawing:
    """One call: the queue, the rows in hand, and their keys and values."""

    def __init__(
        self,
        network: Network,
        prompts: Sequence[tuple[int, ...]],
        settings: SamplingSettings,
        completions: int,
        seed: int,
    ) -> None:
        # longest first: prompts computed together are alike, and the longest memory comes first
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        self.queue = deque(Job(i, number) for i in order for number in range(completions))
        self.network, self.prompts = network, prompts
        weight = network.vocabulary_weight
        self.size = min(settings.batch_size, len(self.queue))
        self.rows = Rows(settings, seed, weight.device)
        self.slots = Slots(network, self.size, settings.max_completion_length)
        self.choose = Chooser(settings, weight, self.size)

    def run(self) -> Iterator[tuple[Job, TokenCompletion]]:
        """Every job and what it became, as they end."""
        rows = self.rows
        hidden_RH = self._admit()
        while len(rows):
            ids_R, logps_R = self.choose(hidden_RH, rows.uniform_R())
            going = rows.record(ids_R, logps_R)
            if going < REFILL_BELOW * len(rows):
                done, kept_R = rows.take_ended()
                yield from done
                ids_R = ids_R[kept_R]
                self.slots.keep(kept_R)
                self._arrange()
            states = [self.slots.decode(ids_R, rows.length_R)] if going else []
            if self.queue and len(rows) < self.size:
                states.append(self._admit())
            if states:
                hidden_RH = torch.cat(states)

    def _admit(self) -> Tensor:
        """Fill the free slots from the queue; the states that predict the first tokens [., H]."""
        free = min(self.size - len(self.rows), len(self.queue))
        jobs = [self.queue.popleft() for _ in range(free)]
        self.rows.add(jobs)
        seated = {prompt for block in self.slots.blocks for prompt in block.prompts}
        new = dict.fromkeys(job.prompt for job in jobs if job.prompt not in seated)
        for part in self._parts(list(new)):
            ids = [self.prompts[prompt] for prompt in part]
            self.slots.blocks.append(PromptBlock(self.network, part, ids))
        state = {p: h for b in self.slots.blocks for p, h in zip(b.prompts, b.last_PH, strict=True)}
        self._arrange()
        return torch.stack([state[job.prompt] for job in jobs])

    def _parts(self, prompts: Sequence[int]) -> Iterator[list[int]]:
        """Prompts to compute together."""
        part: list[int] = []
        used = 0
        for prompt in prompts:
            length = len(self.prompts[prompt])
            if part and used + length > PREFILL_TOKENS:
                yield part
                part, used = [], 0
            part.append(prompt)
            used += length
        if part:
            yield part

    def _arrange(self) -> None:
        waiting = [self.queue[0].prompt] if self.queue else []
        self.slots.arrange([job.prompt for job in self.rows.jobs], waiting)
