"""Code that passes tests: the completion's program runs in a sandbox, the tests outside of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from truing.rewards._parallel import in_threads
from truing.rewards._sandbox import Limits, run_script, run_tests
from truing.rewards.base import Reward, Unscored, column

BLOCK = re.compile(r"^[ ]{0,3}```+([^`\n]*)\n(.*?)^[ ]{0,3}```+[ \t\r]*$", re.DOTALL | re.MULTILINE)
"""A fenced block: what it is said to be, and what is in it. One after another from the start of the
text, so that the end of one is not taken for the beginning of the next."""
PYTHON = re.compile(r"(py|python)[\d.]*", re.IGNORECASE)


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Code(Reward):
    """#(tests passed) / #(tests) of the program in each completion. Range [0, 1].

    Runs what the model wrote: nothing does so unless a recipe names this reward. SECURITY.md says
    what the sandbox holds. A program that is wrong, crashes, hangs or tries to get out scores 0
    for the tests it does not pass. A row whose tests are missing or malformed leaves its group ("no
    tests"), and so does one with a test that is no Python or hands the program a function ("tests
    from outside"). Raises RolloutError if the sandbox cannot be built, DataError if there is no
    such column. Source of the task: Chen et al. 2021
    (arXiv 2107.03374); departs from it in that the program's process never holds the tests.
    """

    column: str = "tests"
    """The rows' column with the tests: one text (one test), or a list. Each test is a text of
    Python (assert lines over the functions that the program defines) or {input: ..., output: ...},
    what the program reads and prints (blanks at line ends and empty last lines do not count)."""
    extract: Literal["block", "text"] = "block"
    """Where the program is: `block` the last fenced block that is said to be Python, or else the
    last that says nothing (none: score 0); `text` everything."""
    score: Literal["share", "all"] = "share"
    """`share` of the tests passed; `all`: 1 if every one passed, else 0."""
    seconds: Annotated[float, Field(gt=0, le=600)] = 5.0
    """Wall-clock time for all assert tests of a program together, and for each {input, output}, the
    first of which that takes longer is the last. Smaller stops slow programs, which then fail what
    they have not passed yet."""
    memory_mb: Annotated[int, Field(ge=64)] = 512
    """Address space of a process. Smaller fails programs that need more."""
    output_kb: Annotated[int, Field(ge=1)] = 256
    """A program that prints more fails that test."""
    files_mb: Annotated[int, Field(ge=1)] = 8
    """Files a program may write into its own folder, together; with more it fails."""
    workers: Annotated[int, Field(ge=1, le=256)] = 2
    """Completions judged at the same time; more is faster while there are idle cores."""
    interpreter: str = ""
    """A Python (3.11 or newer) with the packages programs may import; empty: ours, with none."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | Unscored]:
        rows = column(columns, self.column, self.label)
        return in_threads(self._score, zip(completions, rows, strict=True), self.workers)

    def _score(self, completion: str, tests: Any) -> float | Unscored:
        listed = [tests] if isinstance(tests, str) else tests
        if not (isinstance(listed, list) and listed and all(map(_is_test, listed))):
            return Unscored("no tests")
        program = self._program(completion)
        if program is None:
            return 0.0
        verdicts = self._verdicts(program, listed)
        if "?" in verdicts:
            return Unscored("tests from outside")
        share = verdicts.count("1") / len(verdicts)
        return share if self.score == "share" else float(share == 1.0)

    def _program(self, completion: str) -> str | None:
        if self.extract == "text":
            return completion
        named: list[str] = []
        unnamed: list[str] = []
        for said, text in BLOCK.findall(completion.replace("\r\n", "\n")):
            words = said.split()
            if not words:
                unnamed.append(text)
            elif PYTHON.fullmatch(words[0]):
                named.append(text)
        return next(reversed(named or unnamed), None)

    def _verdicts(self, program: str, tests: Sequence[Any]) -> str:
        limits = Limits(
            self.seconds, self.memory_mb << 20, self.output_kb << 10, self.files_mb << 20
        )
        asserts = [test for test in tests if isinstance(test, str)]
        verdicts = run_tests(program, asserts, limits, self.interpreter) if asserts else ""
        for case in tests:
            if not isinstance(case, str):
                output = run_script(program, case["input"], limits, self.interpreter)
                same = output.finished and _lines(output.text) == _lines(
                    case["output"].encode("utf-8", "surrogatepass")
                )
                verdicts += "1" if same else "0"
                if not output.within_limits:
                    break  # it hangs or floods: with the other inputs it would, too
        return verdicts.ljust(len(tests), "0")


def _is_test(test: Any) -> bool:
    if isinstance(test, dict):
        return all(isinstance(test.get(key), str) for key in ("input", "output"))
    return isinstance(test, str)


def _lines(text: bytes) -> list[bytes]:
    return [line.rstrip() for line in text.rstrip().split(b"\n")]
