"""Whether a completion is JSON, has the keys asked for, and keeps to a schema.

    checks:   it is JSON · each key of `keys` is there (their share) · it satisfies `schema`
    score = 1 if all hold, else 0
    score = (how far it can be read + JSON + share of keys + schema) / number of checks    partial

"How far it can be read" is the share of the text before the place where a JSON reader gives up, so
a policy that never writes JSON is drawn towards it, one right character at a time; it counts as
much as being JSON does, and more than both there is only for what is in it.
Departures: NaN and Infinity are no JSON (RFC 8259), though Python reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from truing.errors import RolloutError, UsageError
from truing.rewards._json import read_json, validator
from truing.rewards.base import Reward


def _schema(given: Any) -> Any:
    """A schema, or the file that holds one."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(Path(given).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be read: {error}") from error


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class JsonSchema(Reward):
    """Range [0, 1]; 1 if and only if every check holds.

    Raises RolloutError if there is a schema and the package jsonschema is not installed, UsageError
    for a schema that is none. References in a schema are looked up in it and nowhere else.
    """

    keys: tuple[str, ...] = ()
    """Keys the JSON object must have; anything but an object has none."""
    schema: Annotated[dict[str, Any] | None, BeforeValidator(_schema)] = None
    """A JSON Schema, or the path of a file with one (needs the extra `json`)."""
    match: Literal["full", "anywhere"] = "full"
    """full: the completion is nothing but JSON, spaces around it apart. anywhere: what is read
    begins at the first { or [, and text behind its end does not count."""
    partial: bool = False
    """Whether there is credit on the way, as above: a policy that is never right can then climb."""

    @model_validator(mode="after")
    def _is_usable(self) -> Self:
        if self.schema is not None and (kind := validator()) is not None:
            try:
                kind.check_schema(self.schema)
            except Exception as error:  # jsonschema's own, which may not be installed
                raise UsageError(
                    f"not a JSON Schema: {error}".splitlines()[0],
                    where="json_schema.schema",
                    remedy="correct the schema",
                ) from error
        return self

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float]:
        return [self._score(text.strip()) for text in completions]

    def _score(self, text: str) -> float:
        if self.match == "anywhere":
            starts = [i for i in map(text.find, "{[") if i >= 0]
            text = text[min(starts) :] if starts else ""
        value, read = read_json(text, self.match == "full")
        is_json = value is not None
        checks = [float(is_json)]
        if self.keys:
            there = value[0] if value is not None and isinstance(value[0], Mapping) else {}
            checks.append(sum(key in there for key in self.keys) / len(self.keys))
        if self.schema is not None:
            checks.append(float(value is not None and self._keeps_to_schema(value[0])))
        if self.partial:
            return (read + sum(checks)) / (1 + len(checks))
        return float(min(checks) == 1.0)

    def _keeps_to_schema(self, value: Any) -> bool:
        kind = validator()
        if kind is None:
            raise RolloutError(
                "a JSON Schema needs the package jsonschema",
                where="json_schema",
                remedy="python -m pip install 'truing[json]'",
            )
        from referencing import Registry

        # an empty registry: the default one would fetch references from anywhere
        try:
            return bool(kind(self.schema, registry=Registry()).is_valid(value))
        except (OverflowError, RecursionError):  # 1e999, or nested a thousand deep: no such thing
            return False
