"""One row becomes one group, or a reason why not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from truing.data.readers import Row
from truing.groups import Completion, FinishReason, Group, GroupType, Message, Prompt

Format = Literal["plain", "conversational", "transcript"]

EXTRAS = ("finish", "score")
"""What may be said of a completion in a column of its own: `score`, `chosen_score`, ..."""
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
    used = {*kind.needs}
    texts: tuple[str, ...]
    if kind.type == "preference":
        prompt, texts, shape = _pair(values, explicit="prompt" in kind.needs)
        prefixes: tuple[str, ...] = ("chosen_", "rejected_")
        if shape.implicit:
            used.discard("prompt")
    else:
        prompt, texts = _single(values, kind)
        prefixes = ("",) * len(texts)
        shape = _shape_of(prompt)
    label = _label(values["label"]) if kind.type == "unpaired" else None
    used |= {prefix + extra for prefix in prefixes for extra in EXTRAS}
    group = Group(
        prompt,
        tuple(
            _completion(values, text, prefix, label)
            for text, prefix in zip(texts, prefixes, strict=True)
        ),
        chosen=0 if kind.type == "preference" else None,
        rejected=1 if kind.type == "preference" else None,
        where=row.where,
        columns={name: value for name, value in values.items() if name not in used},
    )
    return group, shape


def readable(messages: Sequence[Message]) -> str:
    """A conversation as `Prompt.text`: its last user turn, then the prefix to continue, if any."""
    parts = [m.content for m in messages if m.role == "user"][-1:]
    if messages[-1].role == "assistant" or not parts:
        parts.append(messages[-1].content)
    return "\n\n".join(parts)


def _shape_of(prompt: Prompt) -> Shape:
    return Shape("plain" if prompt.messages is None else "conversational")


def _single(values: Mapping[str, Any], kind: Kind) -> tuple[Prompt, tuple[str, ...]]:
    """The prompt, and its one completion if the type has one."""
    if "messages" in kind.needs:
        turns, text = _last_turn(_messages(values["messages"], "messages"), "messages")
        return _conversation(turns), (text,)
    prompt = _prompt(values["prompt"])
    if kind.type == "prompt-only":
        return prompt, ()
    return prompt, (_answer(values["completion"], "completion", prompt),)


def _pair(values: Mapping[str, Any], *, explicit: bool) -> tuple[Prompt, tuple[str, str], Shape]:
    """The prompt, (chosen, rejected), and how they were written."""
    chosen, rejected = values["chosen"], values["rejected"]
    talks = _is_talk(chosen)
    if talks != _is_talk(rejected):
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


def _is_talk(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _prompt(value: Any) -> Prompt:
    if _is_talk(value):
        return _conversation(_messages(value, "prompt"))
    return Prompt(_text(value, "prompt"))


def _answer(value: Any, name: str, prompt: Prompt) -> str:
    """A completion: text, or after a conversation one assistant message."""
    if not _is_talk(value):
        return _text(value, name)
    messages = _messages(value, name)
    if prompt.messages is None:
        raise BadRowError(f"'prompt' is text, but '{name}' is a conversation")
    if len(messages) > 1 or messages[0].role != "assistant":
        raise BadRowError(f"'{name}' is not one assistant message")
    return _text(messages[0].content, name)


def _completion(
    values: Mapping[str, Any], text: str, prefix: str, label: bool | None
) -> Completion:
    finish, score = f"{prefix}finish", f"{prefix}score"
    return Completion(
        text, _finish(values.get(finish), finish), _score(values.get(score), score), label
    )


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


def _label(value: Any) -> bool:
    """True or False; files without types write 1 and 0, or the words."""
    verdict = {"true": True, "false": False, "1": True, "0": False}.get(str(value).lower())
    if verdict is None:
        raise BadRowError("'label' is neither true nor false")
    return verdict


def _finish(value: Any, name: str) -> FinishReason:
    if value is None:
        return FinishReason.STOP
    if value not in list(FinishReason):
        raise BadRowError(f"'{name}' is neither 'stop' nor 'length'")
    return FinishReason(value)


def _score(value: Any, name: str) -> float | None:
    if value is None:
        return None
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise BadRowError(f"'{name}' is not a finite number")
    return score
