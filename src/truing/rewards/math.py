"""Whether a completion's answer is mathematically the right one: ½ is 0.5 is \\frac{1}{2}.

The package math-verify reads the answer out of the text (what is \\boxed first, then LaTeX, then
plain expressions) and compares it with sympy. It runs in a process of its own, with limits.
Source: Kydlíček 2025, Math-Verify (https://github.com/huggingface/Math-Verify).
"""

from __future__ import annotations

import atexit
import importlib.util
import threading
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from truing.errors import RolloutError
from truing.rewards._math_worker import Checker
from truing.rewards.base import Reward, Unscored, column


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Math(Reward):
    """1 if the answer equals the column's, 0 if it does not or there is none in the text.

    Unscored: reason `no_answer` where the column holds nothing that can be read, `undecided` where
    the comparison takes too long or too much memory (an answer like 9^9^9^9). Raises DataError if
    there is no such column, RolloutError if the package is not installed.
    """

    column: Annotated[str, Field(min_length=1)] = "answer"
    """The column of the rows that holds the right answer: a number, or text with an expression."""
    rounding: Annotated[int, Field(ge=0)] = 6
    """Decimal places in which numbers must agree. Larger is stricter."""
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    """Seconds for one comparison. Larger decides more of the hard ones."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | Unscored]:
        answers = column(columns, self.column, "math")
        if importlib.util.find_spec("math_verify") is None:
            raise RolloutError(
                "the reward 'math' needs the package math-verify",
                remedy="python -m pip install 'truing[math]'",
            )
        with _LOCK:  # one process, one question at a time
            return [self._score(*pair) for pair in zip(completions, answers, strict=True)]

    def _score(self, text: str, answer: Any) -> float | Unscored:
        if answer is None:
            return Unscored("no_answer")
        gold = str(answer)
        question = {"text": text, "gold": gold, "rounding": self.rounding}
        try:
            verdict = _checker().ask(question, self.timeout)
        except TimeoutError:
            return Unscored("undecided")
        return Unscored("no_answer") if verdict is None else float(verdict)


_LOCK = threading.Lock()


@cache
def _checker() -> Checker:
    checker = Checker()
    atexit.register(checker.close)
    return checker
