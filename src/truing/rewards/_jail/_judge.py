"""The tests' side: they run here, where the program's code never does.

Names that the program defines are stand-ins: a call goes to the program's process and brings back
data. So what a program does to its own process (patched builtins, an `__eq__` that is always
true, `exit`) does not reach the comparison.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import os
import sys
import types
from collections.abc import Iterator
from typing import Any, TextIO

from ._wire import decode, encode

PASSED, FAILED, UNJUDGED = "1", "0", "?"


class CannotCrossError(BaseException):
    """A test hands the program something that cannot leave this process, such as a function."""


class ProgramError(Exception):
    """The program raised an exception that is not one of Python's own."""


class Program:
    """The other process, one request at a time."""

    def __init__(self, requests: TextIO, answers: TextIO) -> None:
        self.requests, self.answers, self.count = requests, answers, 0

    def definitions(self) -> dict[str, Any]:
        """What the program defines, without names that Python's own would be hidden by: not `all`,
        and not `__builtins__`, from which every name in a test would be taken."""
        names: dict[str, Any] = {}
        for name, data in self._read()["names"].items():
            if hasattr(builtins, name) or name.startswith("__"):
                continue
            if isinstance(data, dict) and "module" in data:
                if data["module"] in sys.stdlib_module_names:
                    names[name] = importlib.import_module(data["module"])
            else:
                names[name] = decode(data, self._stand_in)
        return names

    def ask(self, operation: str, *arguments: Any) -> Any:
        """What the program answers. Raises what it raised."""
        self.count += 1
        try:
            sent = [encode(item, _number) for item in arguments]
        except CannotCrossError as error:
            if operation == "call":  # the test's own function: only the program could call it
                raise
            raise TypeError(f"{operation} with {error}") from error
        request = {"id": self.count, "operation": operation, "arguments": sent}
        self.requests.write(json.dumps(request) + "\n")
        self.requests.flush()
        answer = self._read()
        if answer["id"] != self.count:
            raise ProgramError("answered something else")
        if "raised" in answer:
            raise _exception(str(answer["raised"]), str(answer["text"]))
        if operation == "call":
            self._take_over(arguments[1], answer["changed"])
        return decode(answer["value"], self._stand_in)

    def _take_over(self, arguments: tuple[Any, ...], changed: Any) -> None:
        for old, data in zip(arguments, decode(changed, self._stand_in), strict=True):
            if isinstance(old, (list, bytearray)):
                old[:] = data
            elif isinstance(old, (dict, set)):
                old.clear()
                old.update(data)

    def _read(self) -> Any:
        line = self.answers.readline()
        if not line:
            raise ProgramError("the program has ended")
        return json.loads(line)

    def _stand_in(self, number: int) -> StandIn:
        return StandIn(self, int(number))


class StandIn:
    """An object that lives with the program. It equals no data, whatever its `__eq__` says."""

    def __init__(self, program: Program, number: int) -> None:
        self._program, self._number = program, number

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.ask("attribute", self, name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._program.ask("call", self, arguments, named)

    def __eq__(self, other: object) -> bool:
        both = isinstance(other, StandIn)
        return both and self._program.ask("equal", self, other) is True

    def __hash__(self) -> int:
        return self._number

    def __instancecheck__(self, instance: object) -> bool:
        inside = isinstance(instance, StandIn)
        return inside and self._program.ask("isinstance", instance, self) is True

    def __getitem__(self, key: Any) -> Any:
        return self._program.ask("item", self, key)

    def __contains__(self, item: Any) -> bool:
        return self._program.ask("contains", self, item) is True

    def __len__(self) -> int:
        return int(self._program.ask("length", self))

    def __bool__(self) -> bool:
        return self._program.ask("true", self) is True

    def __iter__(self) -> Iterator[Any]:
        return self._program.ask("iter", self)  # type: ignore[no-any-return]

    def __next__(self) -> Any:
        return self._program.ask("next", self)

    def __str__(self) -> str:
        return str(self._program.ask("text", self))

    def __repr__(self) -> str:
        return str(self._program.ask("repr", self))


def _number(value: Any) -> dict[str, int]:
    if isinstance(value, StandIn):
        return {"object": object.__getattribute__(value, "_number")}
    raise CannotCrossError(type(value).__name__)


def _exception(name: str, text: str) -> Exception:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # UnicodeError and its kin want more than a text
            return ProgramError(f"{name}: {text}")
    return ProgramError(f"{name}: {text}")


def judge(tests: list[str], requests_fd: int, answers_fd: int) -> Iterator[str]:
    """A verdict for every test, in order; they share one namespace, as the lines of a file do."""
    compiled = [_compiled(test) for test in tests]  # before the program has any say
    requests = os.fdopen(requests_fd, "w", encoding="ascii")
    program = Program(requests, os.fdopen(answers_fd, encoding="ascii"))
    namespace: dict[str, Any] | None
    try:
        namespace = {**program.definitions(), "__name__": "tests", "__builtins__": builtins}
    except Exception:  # it ended or answered nonsense before it defined anything
        namespace = None
    for test in compiled:
        yield UNJUDGED if test is None else _verdict(test, namespace)


def _compiled(test: str) -> types.CodeType | None:
    """A test ready to run; None for one that no program could pass here: it is no Python, or it
    imports what is not there."""
    try:
        for node in ast.walk(ast.parse(test)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                importlib.import_module("." * node.level + (node.module or ""))
        return compile(test, "<test>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError, ImportError, TypeError):
        return None


def _verdict(test: types.CodeType, namespace: dict[str, Any] | None) -> str:
    if namespace is None:
        return FAILED
    try:
        exec(test, namespace)
    except CannotCrossError:
        return UNJUDGED
    except BaseException:
        return FAILED
    return PASSED
