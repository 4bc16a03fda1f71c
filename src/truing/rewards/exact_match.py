"""Whether a completion is the right answer, letter by letter after the normalisation asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from truing.rewards.base import Reward, Unscored, column


def _takes_one_group(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    if groups != 1:
        raise ValueError(f"it must have one group, (...), around the answer, not {groups}")
    return pattern


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class ExactMatch(Reward):
    """1 if the answer in the completion equals the column's (one of them, if it is a list), else 0.

    Spaces around both never count. A row whose column is empty, null or not there leaves its
    completions unscored, reason `no_answer`. Raises DataError if no row has such a column.
    """

    column: Annotated[str, Field(min_length=1)] = "answer"
    """The column of the rows that holds the right answer, or a list of right answers."""
    extract: Annotated[str, AfterValidator(_takes_one_group)] | None = None
    """A regular expression with one group: the answer is what its last match in the completion
    holds, such as `####\\s*(.+)`; without a match the score is 0. null: the whole completion."""
    ignore_case: bool = False
    """Whether capitals and small letters are alike: true accepts more."""
    ignore_punctuation: bool = False
    """Whether signs that are neither letters, digits nor spaces are left out first: true accepts
    more, and takes 1.5 for 15."""
    ignore_spaces: bool = False
    """Whether runs of spaces and line ends count as one space: true accepts more."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | Unscored]:
        answers = column(columns, self.column, "exact_match")
        return [self._score(*pair) for pair in zip(completions, answers, strict=True)]

    def _score(self, text: str, answer: Any) -> float | Unscored:
        right = [str(a) for a in (answer if isinstance(answer, list | tuple) else [answer])]
        if answer is None or not any(map(str.strip, right)):
            return Unscored("no_answer")
        if self.extract is not None:
            found = re.findall(self.extract, text)
            if not found:
                return 0.0
            text = found[-1]
        return float(self._normal(text) in map(self._normal, right))

    def _normal(self, text: str) -> str:
        if self.ignore_case:
            text = text.casefold()
        if self.ignore_punctuation:
            text = "".join(c for c in text if c.isalnum() or c.isspace())
        return " ".join(text.split()) if self.ignore_spaces else text.strip()
