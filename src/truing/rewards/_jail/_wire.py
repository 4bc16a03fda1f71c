"""Values between the judge and the program, as JSON: data crosses, objects stay where they are.

A value is rebuilt from a short list of types; nothing that arrives is executed. An object of any
other type stays with the program and crosses as a number that stands for it.
"""

from __future__ import annotations

import datetime
import decimal
import fractions
from collections.abc import Callable
from typing import Any

REDUCED = {
    kind.__name__: kind
    for kind in (
        decimal.Decimal,
        fractions.Fraction,
        datetime.date,
        datetime.datetime,
        datetime.time,
        datetime.timedelta,
        range,
        slice,
    )
}
"""Exact types whose constructor takes what `__reduce__` gives."""
CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": list,
}


def encode(value: Any, keep: Callable[[Any], Any]) -> Any:
    """JSON for `value`; what is no data goes through `keep`. Subclasses cross as their base."""
    if value is None or isinstance(value, bool):
        return value
    for scalar in (int, float, str):
        if isinstance(value, scalar):
            return scalar(value)
    if isinstance(value, list):
        return [encode(item, keep) for item in value]
    if isinstance(value, dict):
        pairs = [[encode(key, keep), encode(item, keep)] for key, item in value.items()]
        return {"dict": pairs}
    for name, kind in (("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if isinstance(value, kind):
            return {name: [encode(item, keep) for item in value]}
    if isinstance(value, (bytes, bytearray)):
        return {type(value).__name__: value.decode("latin-1")}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if REDUCED.get(type(value).__name__) is type(value):
        return {"new": [type(value).__name__, encode(list(value.__reduce__()[1]), keep)]}
    return keep(value)


def decode(data: Any, find: Callable[[int], Any]) -> Any:
    """The value behind JSON; `find` turns an object's number into what stands for it here."""
    if isinstance(data, list):
        return [decode(item, find) for item in data]
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind == "object":
        return find(content)
    if kind == "dict":
        return {decode(key, find): decode(item, find) for key, item in content}
    if kind in ("bytes", "bytearray"):
        plain = content.encode("latin-1")
        return plain if kind == "bytes" else bytearray(plain)
    if kind == "complex":
        return complex(*content)
    if kind == "new":
        name, arguments = content
        return REDUCED[name](*decode(arguments, find))
    return CONTAINERS[kind](decode(item, find) for item in content)
