"""The unit of the whole system: a prompt and its completions are one thing, a `Group`.

A demonstration is a group with one completion, a preference pair a group with two and a choice,
an unpaired label a group with one and a verdict, a scored or rollout group has N completions and N
scores, a solution with judged steps is one completion with steps, a prompt to roll out has no
completion yet. Text first (`Group`), then token ids (`TokenGroup`). No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

GroupType = Literal[
    "prompt-only", "prompt-completion", "preference", "unpaired", "scored", "stepwise"
]
CHOICE_COLUMNS = ("margin", "probability")
"""Columns of a pair that speak of its choice: by how much chosen is better (in the annotator's own
unit), and the probability that it is better than rejected."""


class FinishReason(StrEnum):
    """Why a completion ends where it ends."""

    STOP = "stop"
    """The author meant to stop: the stop token follows the text and is a trained target. A drawn
    completion that ends with a stop sequence is one too; the sequence stands for the token."""
    LENGTH = "length"
    """The token limit cut it: no stop token follows, and none is trained."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is given: plain `text`, or `messages` for the chat template.

    With messages, `text` is what a person would read (used in tables and by text rewards). A last
    message of the assistant is a prefix that the completion continues.
    """

    text: str
    messages: tuple[Message, ...] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a completion: its own text is `text[start:end]`, and what separates it from the
    next step belongs to neither."""

    start: int
    end: int
    label: bool
    """Whether the step is right."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer, with what is known of it."""

    text: str
    finish: FinishReason = FinishReason.STOP
    score: float | None = None
    """A reward, if one was given. Unit: the reward's own."""
    label: bool | None = None
    """A verdict (desirable or not), if one was given."""
    steps: tuple[Step, ...] = ()
    """The steps of its text with their labels, if they were judged one by one."""


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and its completions."""

    prompt: Prompt
    completions: tuple[Completion, ...] = ()
    chosen: int | None = None
    """Index of the preferred completion; with `rejected` set this group is a pair."""
    rejected: int | None = None
    where: str = ""
    """Where it came from, for messages: `file:line`."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the row, handed to rewards as they are."""

    @property
    def type(self) -> GroupType:
        """Which of the field's dataset types this group is."""
        if self.chosen is not None and self.rejected is not None:
            return "preference"
        if not self.completions:
            return "prompt-only"
        if len(self.completions) > 1 and all(c.score is not None for c in self.completions):
            return "scored"
        first = self.completions[0]
        if first.steps:
            return "stepwise"
        return "prompt-completion" if first.label is None else "unpaired"

    def bare(self) -> Group:
        """The prompt alone, for other completions: without what was said of a pair's choice."""
        said = CHOICE_COLUMNS if self.chosen is not None else ()
        columns = {name: value for name, value in self.columns.items() if name not in said}
        return Group(self.prompt, where=self.where, columns=columns)


@dataclass(frozen=True, slots=True)
class TokenCompletion:
    """The ids of one completion, stop token included where the author meant to stop."""

    ids: tuple[int, ...]
    finish: FinishReason = FinishReason.STOP
    score: float | None = None
    label: bool | None = None
    sampled_logps: tuple[float, ...] | None = None
    """Log-prob of each id under the sampler that drew it, at its temperature. Nats."""
    steps: tuple[tuple[int, bool], ...] = ()
    """Of each judged step: the index of its last token in `ids`, and its label."""
    mismatched: bool = False
    """Another prompt's completion, there only to estimate KL."""
    of_reference: bool = False
    """Drawn from the reference, not from the policy that learns."""


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """A group as token ids. The prompt is stored once for all completions."""

    prompt_ids: tuple[int, ...]
    completions: tuple[TokenCompletion, ...] = ()
    chosen: int | None = None
    rejected: int | None = None
    where: str = ""
    baseline: float | None = None
    """Score of the greedy completion of the same prompt, where a credit rule wants it."""
    origin: Group | None = None
    """The group these ids were made from: its text and columns are what rewards are given."""
    margin: float | None = None
    """By how much chosen is better, if that was given (see CHOICE_COLUMNS)."""
    probability: float | None = None
    """Probability that chosen is better than rejected, if that was given."""

    @property
    def scores(self) -> list[float]:
        """The score of each completion. All must have one: a missing score is never a zero."""
        found = [c.score for c in self.completions if c.score is not None]
        assert len(found) == len(self.completions), self.where
        return found

    @property
    def length(self) -> int:
        """Tokens of the packed group: the prompt once, and every completion."""
        return len(self.prompt_ids) + sum(len(c.ids) for c in self.completions)
