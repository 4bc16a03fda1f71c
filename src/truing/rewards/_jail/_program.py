"""The program's side: it runs as a script, or defines functions that the judge then calls."""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any

from ._wire import decode, encode

OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, arguments, named: target(*arguments, **named),
    "attribute": getattr,
    "item": lambda target, key: target[key],
    "contains": lambda target, item: item in target,
    "equal": lambda one, other: bool(one == other),
    "isinstance": isinstance,
    "length": len,
    "true": bool,
    "text": str,
    "repr": repr,
    "iter": iter,
    "next": next,
}


def run(program: str, name: str) -> types.ModuleType:
    """Execute the text as the module `name`."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(program, "<program>", "exec"), module.__dict__)
    return module


def serve(program: str, requests_fd: int, answers_fd: int) -> None:
    """Execute the program, say what it defines, then answer the judge's calls until it goes."""
    requests = os.fdopen(requests_fd, encoding="ascii")
    answers = os.fdopen(answers_fd, "w", encoding="ascii")
    objects: list[Any] = []

    def keep(value: Any) -> dict[str, int]:
        objects.append(value)
        return {"object": len(objects) - 1}

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    module = run(program, "program")
    say({"names": _definitions(module, keep)})
    for line in requests:
        request = json.loads(line)
        try:
            arguments = [decode(item, objects.__getitem__) for item in request["arguments"]]
            value = OPERATIONS[request["operation"]](*arguments)
            answer = {"value": encode(value, keep), "changed": _changed(request, arguments, keep)}
        except BaseException as error:
            answer = {"raised": type(error).__name__, "text": _text(error)}
        say({"id": request["id"], **answer})


def _definitions(module: types.ModuleType, keep: Callable[[Any], Any]) -> dict[str, Any]:
    """Top-level names. A module crosses by its name: the judge imports its own, unpatched."""
    names: dict[str, Any] = {}
    for name, value in list(vars(module).items()):
        if isinstance(value, types.ModuleType):
            names[name] = {"module": value.__name__}
        elif not name.startswith("__"):
            names[name] = encode(value, keep)
    return names


def _changed(
    request: dict[str, Any], arguments: list[Any], keep: Callable[[Any], Any]
) -> list[Any] | None:
    """A call's arguments as they are after it, so that work in place reaches the judge."""
    return encode(arguments[1], keep) if request["operation"] == "call" else None


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return ""
