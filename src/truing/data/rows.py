"""One row becomes one group, or a reason why not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from truing.data.readers import Row
from truing.groups import (
    CHOICE_COLUMNS,
    Completion,
    FinishReason,
    Group,
    GroupType,
    Message,
    Prompt,
    Step,
)

Format = Literal["plain", "conversational", "transcript"]

EXTRAS = ("finish", "score")
"""What may be said of a completion in a column of its own: `score`, `chosen_score`, ..."""
TYPE_EXTRAS: Mapping[GroupType, tuple[str, ...]] = {
    "preference": CHOICE_COLUMNS,
    "scored": ("finishes",),
    "stepwise": ("step_separator",),
}
"""What may be said of a whole row of a type."""
STEP_SEPARATOR = "\n"
"""What joins steps (as in TRL) where the row does not say another."""
UNREAD = ("tools", "images")
"""Columns that would change what the model sees, and which nothing here can show it."""
ROLES = ("system", "developer", "user", "assistant", "tool")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TRANSCRIPT = re.compile(r"\s*Human:.*\n\nAssistant:", re.DOTALL)


class Kind(NamedTuple):
    """A dataset type and the columns that make it."""

    type: GroupType
    needs: tuple[str, ...]


class Shape(NamedTuple):
    """How the rows of a type are written. Implicit: chosen and rejected both hold the prompt."""

    format: Format
    implicit: bool = False

    def __str__(self) -> str:
        return f"{self.format} with implicit prompt" if self.implicit else self.format


class BadRowError(Exception):
    """The reason why a row cannot be used. Never leaves this room."""


def read_row(row: Row, kind: Kind) -> tuple[Group, Shape]:
    """The row as a group. Raises BadRowError."""
    values = row.values
    for name in kind.needs:
        if values.get(name) is None:
            raise BadRowError(f"'{name}' is missing")
    for name in UNREAD:
        if values.get(name):
            raise BadRowError(f"'{name}' is not supported")
    used = {*kind.needs, *TYPE_EXTRAS.get(kind.type, ())}
    if kind.type == "preference":
        group, shape = _pair(values, explicit="prompt" in kind.needs)
        used |= {f"{side}_{extra}" for side in ("chosen", "rejected") for extra in EXTRAS}
        if shape.implicit:
            used.discard("prompt")
    else:
        group = _single(values, kind)
        shape = _shape_of(group.prompt)
        if len(group.completions) == 1:
            used |= {*EXTRAS}
    columns = {name: value for name, value in values.items() if name not in used}
    return replace(group, where=row.where, columns={**columns, **group.columns}), shape


def readable(messages: Sequence[Message]) -> str:
    """A conversation as `Prompt.text`: its last user turn, then the prefix to continue, if any."""
    parts = [m.content for m in messages if m.role == "user"][-1:]
    if messages[-1].role == "assistant" or not parts:
        parts.append(messages[-1].content)
    return "\n\n".join(parts)


def _shape_of(prompt: Prompt) -> Shape:
    return Shape("plain" if prompt.messages is None else "conversational")


def _single(values: Mapping[str, Any], kind: Kind) -> Group:
    """A row that is no pair."""
    if "messages" in kind.needs:
        turns, text = _last_turn(_messages(values["messages"], "messages"), "messages")
        return Group(_conversation(turns), (_completion(values, text),))
    prompt = _prompt(values["prompt"])
    if kind.type == "prompt-only":
        return Group(prompt)
    if kind.type == "scored":
        return Group(prompt, _scored(values, prompt))
    if kind.type == "stepwise":
        return Group(prompt, (_stepwise(values),))
    label = _label(values["label"], "label") if kind.type == "unpaired" else None
    text = _answer(values["completion"], "completion", prompt)
    return Group(prompt, (_completion(values, text, label=label),))


def _scored(values: Mapping[str, Any], prompt: Prompt) -> tuple[Completion, ...]:
    """Several answers, each with its score."""
    texts = [_answer(text, "completions", prompt) for text in _list(values, "completions")]
    if len(texts) < 2:
        raise BadRowError("'completions' has fewer than two answers")
    scores = [_number(score, "scores") for score in _list(values, "scores", len(texts))]
    finishes: Sequence[Any] = [None] * len(texts)
    if values.get("finishes") is not None:
        finishes = _list(values, "finishes", len(texts))
    return tuple(
        Completion(text, _finish(finish, "finishes"), score)
        for text, finish, score in zip(texts, finishes, scores, strict=True)
    )


def _stepwise(values: Mapping[str, Any]) -> Completion:
    """One answer in steps, each with its label."""
    texts = [_text(text, "completions") for text in _list(values, "completions")]
    labels = [_label(label, "labels") for label in _list(values, "labels", len(texts))]
    if not texts:
        raise BadRowError("'completions' is empty")
    separator = values.get("step_separator")
    if separator is None:
        separator = STEP_SEPARATOR
    separator = _text(separator, "step_separator", blank=True)
    steps, start = [], 0
    for text, label in zip(texts, labels, strict=True):
        steps.append(Step(start, start + len(text), label))
        start += len(text) + len(separator)
    return replace(_completion(values, separator.join(texts)), steps=tuple(steps))


def _pair(values: Mapping[str, Any], *, explicit: bool) -> tuple[Group, Shape]:
    """A pair, and how it was written."""
    prompt, (chosen, rejected), shape = _pair_texts(values, explicit=explicit)
    given = {name: _score(values.get(name), name) for name in CHOICE_COLUMNS}
    probability = given["probability"]
    if probability is not None and not 0 <= probability <= 1:
        raise BadRowError("'probability' is not between 0 and 1")
    group = Group(
        prompt,
        (_completion(values, chosen, "chosen_"), _completion(values, rejected, "rejected_")),
        chosen=0,
        rejected=1,
        columns={name: value for name, value in given.items() if value is not None},
    )
    return group, shape


def _pair_texts(
    values: Mapping[str, Any], *, explicit: bool
) -> tuple[Prompt, tuple[str, str], Shape]:
    """The prompt, (chosen, rejected), and how they were written."""
    chosen, rejected = values["chosen"], values["rejected"]
    talks = _is_list(chosen)
    if talks != _is_list(rejected):
        raise BadRowError("one of chosen and rejected is a conversation, the other is not")
    if explicit and not (talks and isinstance(values["prompt"], str)):
        prompt = _prompt(values["prompt"])
        texts = _answer(chosen, "chosen", prompt), _answer(rejected, "rejected", prompt)
        shape = _shape_of(prompt)
    elif talks:
        prompt, texts = _shared_turns(_messages(chosen, "chosen"), _messages(rejected, "rejected"))
        shape = Shape("conversational", implicit=True)
        # Some data sets repeat the question as text beside two whole conversations.
        if explicit and values["prompt"] not in [m.content for m in prompt.messages or ()]:
            raise BadRowError("'prompt' is not in the conversations of chosen and rejected")
    else:
        chosen, rejected = _text(chosen, "chosen"), _text(rejected, "rejected")
        if TRANSCRIPT.match(chosen):
            prompt, texts = _shared_turns(_turns(chosen, "chosen"), _turns(rejected, "rejected"))
            shape = Shape("transcript", implicit=True)
        else:
            prompt, texts = _shared_words(chosen, rejected)
            shape = Shape("plain", implicit=True)
    if texts[0] == texts[1]:
        raise BadRowError("chosen and rejected are the same")
    return prompt, texts, shape


def _shared_turns(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[Prompt, tuple[str, str]]:
    """The prompt of two whole conversations, and their last turns."""
    turns, first = _last_turn(chosen, "chosen")
    others, second = _last_turn(rejected, "rejected")
    if turns != others:
        raise BadRowError("the prompts of chosen and rejected differ")
    return _conversation(turns), (first, second)


def _shared_words(chosen: str, rejected: str) -> tuple[Prompt, tuple[str, str]]:
    """The longest common beginning that ends at a word and leaves both a rest, and the rests."""
    if chosen == rejected:
        raise BadRowError("chosen and rejected are the same")
    shorter = min(len(chosen), len(rejected))
    common = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter - 1)
    for cut in range(common, 0, -1):
        parts = chosen[:cut], chosen[cut:], rejected[cut:]
        at_a_word = chosen[cut].isspace() and rejected[cut].isspace()
        if at_a_word and all(part.strip() for part in parts):
            return Prompt(parts[0]), parts[1:]
    raise BadRowError("chosen and rejected share no prompt")


def _conversation(messages: tuple[Message, ...]) -> Prompt:
    if not messages or not messages[-1].content.strip():
        raise BadRowError("the prompt is empty")
    return Prompt(readable(messages), messages)


def _last_turn(messages: tuple[Message, ...], name: str) -> tuple[tuple[Message, ...], str]:
    """A whole conversation as (what the last assistant turn answers, that turn)."""
    *before, last = messages
    if last.role != "assistant":
        raise BadRowError(f"the last turn of '{name}' is not the assistant's")
    if before and before[-1].role == "assistant":
        raise BadRowError(f"'{name}' has two turns of one speaker in a row")
    return tuple(before), _text(last.content, name)


def _turns(transcript: str, name: str) -> tuple[Message, ...]:
    """The turns of an HH transcript, each without the blanks around it."""
    head, *pieces = re.split(r"(?:^\s*|\n\n)(Human|Assistant):", transcript)
    if head:
        raise BadRowError(f"'{name}' does not begin with a turn")
    turns = tuple(
        Message(SPEAKERS[speaker], said.strip())
        for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)
    )
    if any(a.role == b.role for a, b in pairwise(turns)):
        raise BadRowError(f"'{name}' has two turns of one speaker in a row")
    return turns


def _messages(value: Any, name: str) -> tuple[Message, ...]:
    """A list of {role, content} with known roles and nothing that would be lost."""
    if not value:
        raise BadRowError(f"'{name}' is empty")
    for message in value:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise BadRowError(f"'{name}' has a message without role and content")
        if message["role"] not in ROLES:
            raise BadRowError(f"'{name}' has a role that is none of: {', '.join(ROLES)}")
        more = [key for key in message if key not in ("role", "content") and message[key]]
        if more:
            raise BadRowError(f"'{name}' has messages with '{more[0]}', which is not supported")
    return tuple(
        Message(message["role"], _text(message["content"], name, blank=True)) for message in value
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _prompt(value: Any) -> Prompt:
    if _is_list(value):
        return _conversation(_messages(value, "prompt"))
    return Prompt(_text(value, "prompt"))


def _answer(value: Any, name: str, prompt: Prompt) -> str:
    """A completion: text, or after a conversation one assistant message."""
    if not _is_list(value):
        return _text(value, name)
    messages = _messages(value, name)
    if prompt.messages is None:
        raise BadRowError(f"'prompt' is text, but '{name}' is a conversation")
    if len(messages) > 1 or messages[0].role != "assistant":
        raise BadRowError(f"'{name}' is not one assistant message")
    return _text(messages[0].content, name)


def _completion(
    values: Mapping[str, Any], text: str, prefix: str = "", label: bool | None = None
) -> Completion:
    finish, score = f"{prefix}finish", f"{prefix}score"
    return Completion(
        text, _finish(values.get(finish), finish), _score(values.get(score), score), label
    )


def _list(values: Mapping[str, Any], name: str, length: int | None = None) -> Sequence[Any]:
    """The column as a list, one entry for each of `length` completions."""
    value: Sequence[Any] = values[name]
    if not _is_list(value):
        raise BadRowError(f"'{name}' is {type(value).__name__}, not a list")
    if length is not None and len(value) != length:
        raise BadRowError(f"'completions' and '{name}' are not equally many")
    return value


def _text(value: Any, name: str, *, blank: bool = False) -> str:
    if not isinstance(value, str):
        raise BadRowError(f"'{name}' is {type(value).__name__}, not text")
    if not blank and not value.strip():
        raise BadRowError(f"'{name}' is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRowError(f"'{name}' holds half a character (a lone surrogate)") from None
    return value


def _label(value: Any, name: str) -> bool:
    """True or False; files without types write 1 and 0, or the words."""
    verdict = {"true": True, "false": False, "1": True, "0": False}.get(str(value).lower())
    if verdict is None:
        raise BadRowError(f"'{name}' is neither true nor false")
    return verdict


def _finish(value: Any, name: str) -> FinishReason:
    if value is None:
        return FinishReason.STOP
    if value not in list(FinishReason):
        raise BadRowError(f"'{name}' is neither 'stop' nor 'length'")
    return FinishReason(value)


def _score(value: Any, name: str) -> float | None:
    return None if value is None else _number(value, name)


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRowError(f"'{name}' is not a finite number")
    return number
