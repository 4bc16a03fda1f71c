"""Completions that are being drawn, one a row: what they have so far, and when they end.

R rows · L tokens at most
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from truing.errors import RolloutError
from truing.groups import FinishReason, TokenCompletion, TokenGroup
from truing.rollouts.engines.base import SamplingSettings


class Job(NamedTuple):
    """One completion to draw: the index of its prompt, and which of the prompt's it is."""

    prompt: int
    completion: int


class Rows:
    """Jobs in hand. A row that has ended keeps its place, unchanged, until it is taken out.

    It ends with its stop token, with the token that completes a stop sequence in its text, or at
    the limit. Every token up to that one is kept, that one included, and nothing is added: text
    may go on behind a stop sequence by the rest of one token.
    """

    def __init__(self, settings: SamplingSettings, seed: int, device: torch.device) -> None:
        self.settings, self.seed, self.device = settings, seed, device
        self.jobs: list[Job] = []
        # one column more than tokens: there, rows that have ended write what nobody reads
        width = settings.max_completion_length + 1
        self.noise_RL = torch.zeros(0, width, device=device)
        self.ids_RL = torch.zeros(0, width, dtype=torch.long, device=device)
        self.logps_RL = torch.zeros(0, width, device=device)
        self.length_R = torch.zeros(0, dtype=torch.long, device=device)
        self.going_R = torch.zeros(0, dtype=torch.bool, device=device)
        self.stopped_R = torch.zeros(0, dtype=torch.bool, device=device)

    def __len__(self) -> int:
        return len(self.jobs)

    def add(self, jobs: Sequence[Job]) -> None:
        """Begin these, behind the rows there are."""
        new = Rows(self.settings, self.seed, self.device)
        length = self.settings.max_completion_length
        noise = torch.stack([noise_of(self.seed, job, length) for job in jobs])
        new.noise_RL = torch.nn.functional.pad(noise, (0, 1)).to(self.device)
        new.ids_RL = torch.zeros_like(new.noise_RL, dtype=torch.long)
        new.logps_RL = torch.zeros_like(new.noise_RL)
        new.length_R = new.ids_RL[:, 0].clone()
        new.going_R = torch.ones_like(new.length_R, dtype=torch.bool)
        new.stopped_R = ~new.going_R
        self.jobs += jobs
        for name in _TENSORS:
            setattr(self, name, torch.cat([getattr(self, name), getattr(new, name)]))

    def uniform_R(self) -> Tensor:
        """The random number of each row's next token."""
        return self.noise_RL.gather(1, self.length_R[:, None])[:, 0]

    def record(self, ids_R: Tensor, logps_R: Tensor) -> int:
        """Write down one token of every row; how many rows go on."""
        column = self.length_R[:, None]
        self.ids_RL.scatter_(1, column, ids_R[:, None])
        self.logps_RL.scatter_(1, column, logps_R[:, None])
        self.length_R += self.going_R
        stop_R = ids_R == self.settings.stop_id
        if self.settings.stop:
            stop_R |= self._says_stop()
        self.stopped_R |= stop_R & self.going_R
        self.going_R &= ~stop_R & (self.length_R < self.settings.max_completion_length)
        return int(self.going_R.sum())

    def _says_stop(self) -> Tensor:
        """Whether a row's text now contains a stop sequence."""
        decode, stop = self.settings.decode, self.settings.stop
        assert decode is not None, "stop sequences are text: they need `decode`"
        # a token is a byte at least; one character more, as the first may be cut in its middle
        tail = max(len(text.encode()) for text in stop) + 4
        found = torch.zeros_like(self.going_R)
        for row in self.going_R.nonzero()[:, 0].tolist():
            end = int(self.length_R[row])
            text = decode(self.ids_RL[row, max(0, end - tail) : end].tolist())
            found[row] = any(sequence in text for sequence in stop)
        return found

    def take_ended(self) -> tuple[list[tuple[Job, TokenCompletion]], Tensor]:
        """Take out the rows that have ended; the others, by their former indices, keep their
        order."""
        kept = self.going_R.nonzero()[:, 0]
        ended = (~self.going_R).nonzero()[:, 0].tolist()
        done = [(self.jobs[row], self._completion(row)) for row in ended]
        self.jobs = [self.jobs[row] for row in kept.tolist()]
        for name in _TENSORS:
            setattr(self, name, getattr(self, name)[kept])
        return done, kept

    def _completion(self, row: int) -> TokenCompletion:
        end = int(self.length_R[row])
        return TokenCompletion(
            ids=tuple(self.ids_RL[row, :end].tolist()),
            finish=FinishReason.STOP if self.stopped_R[row] else FinishReason.LENGTH,
            sampled_logps=tuple(self.logps_RL[row, :end].tolist()),
        )


_TENSORS = ("noise_RL", "ids_RL", "logps_RL", "length_R", "going_R", "stopped_R")


def answered(
    prompts: Sequence[TokenGroup], ended: Iterable[tuple[Job, TokenCompletion]], completions: int
) -> list[TokenGroup]:
    """The prompts with what their jobs became, in whatever order they ended.

    Raises RolloutError unless every job has ended exactly once.
    """
    done: dict[Job, TokenCompletion] = {}
    for job, completion in ended:
        if job in done or not (
            0 <= job.prompt < len(prompts) and 0 <= job.completion < completions
        ):
            _lost(f"completion {job.completion} of prompt {job.prompt} came twice or was not asked")
        done[job] = completion
    if missing := len(prompts) * completions - len(done):
        _lost(f"{missing} of {len(prompts) * completions} completions never came")
    return [
        replace(
            prompt,
            completions=tuple(done[Job(index, number)] for number in range(completions)),
            chosen=None,
            rejected=None,
        )
        for index, prompt in enumerate(prompts)
    ]


def _lost(what: str) -> NoReturn:
    raise RolloutError(
        what, where="sampler", remedy="this is a fault of the engine: please report it"
    )


def noise_of(seed: int, job: Job, length: int) -> Tensor:
    """One uniform number per token: what makes a completion reproducible by itself."""
    # a tuple of integers hashes the same in every process and on every machine
    number = hash((seed, job.prompt, job.completion)) & 0x7FFFFFFF
    return torch.rand(length, generator=torch.Generator().manual_seed(number))
