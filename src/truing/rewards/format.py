"""Whether a completion has a form: a regular expression that matches it, 1, or does not, 0."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from truing.rewards.base import Reward


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Format(Reward):
    """1 if the pattern matches, else 0.

    The patterns are Python's (re). One that backtracks for ever on some text, such as (a+)+b,
    cannot be interrupted: keep them plain.
    """

    pattern: Annotated[str, Field(min_length=1), AfterValidator(_compiles)]
    """The regular expression, such as `<think>.*</think>\\s*<answer>.*</answer>`."""
    match: Literal["full", "anywhere"] = "full"
    """full: it matches the completion from end to end. anywhere: some part of it."""
    ignore_case: bool = False
    """Whether capitals and small letters are alike: true accepts more."""
    dot_matches_newline: bool = True
    """Whether `.` also stands for a line's end: false accepts less."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float]:
        flags = re.IGNORECASE * self.ignore_case | re.DOTALL * self.dot_matches_newline
        pattern = re.compile(self.pattern, flags)
        matches = pattern.fullmatch if self.match == "full" else pattern.search
        return [float(matches(text) is not None) for text in completions]
