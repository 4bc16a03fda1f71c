"""JSON read strictly, and as far as it goes."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def validator() -> Any:
    """The schema language's reader, or None if it is not installed."""
    try:
        from jsonschema import Draft202012Validator
    except ImportError:
        return None
    return Draft202012Validator


def read_json(text: str, whole: bool) -> tuple[tuple[Any] | None, float]:
    """The value in a box (null is a value, too), and the share of the text that is readable."""
    try:
        value, end = _READER.raw_decode(text)
    except json.JSONDecodeError as error:
        return None, error.pos / max(len(text), 1)
    except (ValueError, RecursionError):  # NaN, numbers of thousands of digits, endless [[[[
        return None, 0.0
    if whole and end < len(text):
        return None, end / len(text)
    return (value,), 1.0


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_READER = json.JSONDecoder(parse_constant=_refuse)
