"""What a reward is: texts in, one number per completion out. And what becomes of its faults.

    None, NaN, ±Inf, Unscored(reason)       a fault of the data: that completion leaves its group
    an exception                            a fault of the machinery: tried again, then RolloutError
    a TruingError                           goes on as it is: it already says what to do
    no answer in time                       RolloutError at once (see `Patience.timeout`)
    no list, wrong length, not a number     a broken reward: RolloutError at once

A failed reward is never a zero.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from types import MappingProxyType
from typing import Any, NoReturn

from truing.errors import DataError, RolloutError, TruingError

SHOWN = 80
"""Characters of an example in a message."""


@dataclass(frozen=True, slots=True)
class Unscored:
    """In the place of a number: this completion cannot be judged, and why, in a word."""

    reason: str


@dataclass(frozen=True, slots=True)
class Patience:
    """What is done about a reward that raises or does not answer."""

    retries: int = 2
    """How often a call that raised is made again, ≥ 0. Larger survives longer outages."""
    backoff: float = 1.0
    """Seconds before the first retry, doubled before each further one, ≥ 0."""
    timeout: float | None = 1800.0
    """Seconds one call may take; null: for ever. The call runs in a thread of its own. A thread
    cannot be killed: one that is late is left behind (it does not keep the process alive) and what
    it answers is not used, so there is no second try beside it. Code that never lets go of the
    interpreter, such as a regular expression that backtracks for ever, is not interrupted."""


@dataclass(frozen=True, slots=True)
class Scores:
    """One number per completion, or None where there is none."""

    values: list[float | None]
    parts: dict[str, list[float | None]] = field(default_factory=dict)
    """What the number is made of, where it is made of several: name -> one number each."""
    faults: dict[str, int] = field(default_factory=dict)
    """Why completions are unscored: reason -> how many. Sums to the number of None in values."""
    reasons: list[str | None] = field(default_factory=list)
    """The reason of each completion that is unscored; None for the others."""

    @classmethod
    def of(
        cls,
        values: list[float | None],
        reasons: list[str | None],
        parts: dict[str, list[float | None]] | None = None,
    ) -> Scores:
        """Numbers and reasons, counted."""
        return cls(values, parts or {}, dict(Counter(r for r in reasons if r is not None)), reasons)


class Reward(ABC):
    """A frozen dataclass, called as TRL calls its reward functions.

    `prompts` and `completions` have equal length; further columns of the rows come by name.
    Returns one number per completion, larger is better; None (or Unscored, with a reason) where
    it cannot tell. True and False count as 1 and 0, numpy and torch numbers as numbers.
    """

    @abstractmethod
    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> Sequence[float | Unscored | None]:
        """Score every completion."""

    @property
    def wants(self) -> frozenset[str]:
        """Columns it reads that come from the sampler, not from the rows: `completion_ids` (token
        ids, a stop token at the end included), `prompt_messages` (a list of {role, content}, or
        None for a plain prompt), `group` (a number that completions of one group share)."""
        return frozenset()

    @property
    def label(self) -> str:
        """Its name in messages."""
        return type(self).__name__

    def judge(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
        patience: Patience,
    ) -> Scores:
        """The checked numbers. Raises RolloutError by the table above."""
        answer = _answer(self, prompts, completions, columns, patience)
        return Scores.of(*_checked(self.label, answer, len(completions)))


def score(
    reward: Reward,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]] = MappingProxyType({}),
    patience: Patience = Patience(),
) -> Scores:
    """The reward's numbers, checked by the table above; give it all that belong together at once.

    Raises RolloutError for a reward that fails or is broken, and if not one completion could be
    scored.
    """
    scores = reward.judge(prompts, completions, columns, patience)
    if completions and all(value is None for value in scores.values):
        why = ", ".join(f"{reason}: {count}" for reason, count in scores.faults.items())
        raise RolloutError(
            f"not one of {len(completions)} completions could be scored ({why})",
            where=reward.label,
            remedy="see what the reward makes of this one: " + example(prompts[0], completions[0]),
        )
    return scores


def checked_scores(label: str, answer: Any) -> Scores:
    """Numbers of a network of ours as scores, NaN and Inf as no score. Raises RolloutError."""
    return Scores.of(*_checked(label, answer, len(answer)))


def column(columns: Mapping[str, Sequence[Any]], name: str, label: str) -> Sequence[Any]:
    """A column that a reward cannot do without. Raises DataError."""
    if name not in columns:
        raise DataError(
            f"the reward needs a column '{name}', and no row has one",
            where=label,
            remedy=f"add it to the rows, or name another (there are: {', '.join(columns) or '-'})",
        )
    return columns[name]


def example(prompt: str, completion: str) -> str:
    """A prompt and its completion, short enough for a message."""
    return f"{prompt[-SHOWN:]!r} -> {completion[:SHOWN]!r}"


def _answer(
    reward: Reward,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    patience: Patience,
) -> Any:
    """What the reward returns, unchecked, within its time and number of tries."""
    last: BaseException | None = None
    for attempt in range(patience.retries + 1):
        if attempt:
            time.sleep(patience.backoff * 2 ** (attempt - 1))
        try:
            return _within(
                patience.timeout, lambda: reward(prompts, completions, **columns), reward.label
            )
        except TruingError:
            raise
        except (Exception, SystemExit) as error:  # foreign code: it may raise anything, or exit
            last = error
    tried = f"failed {patience.retries + 1} times, " if patience.retries else ""
    shown = example(prompts[0], completions[0]) if completions else "nothing to score"
    raise RolloutError(
        f"{tried}at last with {type(last).__name__}: {last} (scoring {len(completions)} "
        f"completions, the first: {shown})",
        where=reward.label,
        remedy="correct the reward; for a single completion it cannot judge it may return None",
    ) from last


def _within(seconds: float | None, call: Callable[[], Any], label: str) -> Any:
    """The call's result, or what it raised. Raises RolloutError when time is up."""
    if seconds is None:
        return call()
    box: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            box.put((call(), None))
        except BaseException as error:  # handed over, and raised there
            box.put((None, error))

    threading.Thread(target=work, name=f"reward {label}", daemon=True).start()
    try:
        answer, error = box.get(timeout=seconds)
    except queue.Empty:
        raise RolloutError(
            f"no answer within {seconds:g} s",
            where=label,
            remedy="make the reward faster, score fewer completions at once, or allow more time",
        ) from None
    if error is not None:
        raise error
    return answer


def _checked(label: str, answer: Any, count: int) -> tuple[list[float | None], list[str | None]]:
    """Numbers with None for those that are none, and why. Raises RolloutError."""
    answer = answer.tolist() if hasattr(answer, "tolist") else answer  # numpy and torch
    if not isinstance(answer, Sequence) or isinstance(answer, str | bytes):
        _broken(label, f"it returned {type(answer).__name__}, not a list of numbers")
    if len(answer) != count:
        _broken(label, f"{len(answer)} scores for {count} completions")
    values: list[float | None] = []
    reasons: list[str | None] = []
    for index, given in enumerate(answer):
        number, reason = _number(given)
        if number is None and reason is None:
            _broken(label, f"the score of completion {index} is {type(given).__name__} {given!r}")
        values.append(number)
        reasons.append(reason)
    return values, reasons


def _number(given: Any) -> tuple[float | None, str | None]:
    """(number, None), (None, why there is none), or (None, None) for what never is a score."""
    if given is None:
        return None, "none"
    if isinstance(given, Unscored):
        return None, given.reason
    value = given.item() if getattr(given, "ndim", None) == 0 else given  # numpy and torch
    if not isinstance(value, Real):
        return None, None
    try:
        number = float(value)
    except OverflowError:  # an integer of more digits than a float has room for
        return None, "infinite"
    if math.isnan(number):
        return None, "nan"
    return (None, "infinite") if math.isinf(number) else (number, None)


def _broken(label: str, what: str) -> NoReturn:
    raise RolloutError(
        what,
        where=label,
        remedy="a reward returns one number per completion, and None for one it cannot judge",
    )
