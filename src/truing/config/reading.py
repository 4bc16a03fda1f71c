"""A recipe from YAML, checked, with the nearest name for every key that is unknown."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from truing.config.sections import Section
from truing.config.stages import Recipe
from truing.errors import UsageError, suggest

RESERVED_STAGE_NAMES = frozenset({"model", "data"})

S = TypeVar("S", bound=Section)


def read_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """A recipe from YAML, with `a.b=c` overrides. Raises UsageError: what, where, what to do."""
    if not path.is_file():
        raise UsageError(
            "no such recipe", where=str(path), remedy="give a .yaml file; see recipes/"
        )
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UsageError(
            f"not valid YAML: {error}", where=str(path), remedy="correct the line it names"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"not UTF-8: byte {error.start + 1} is 0x{error.object[error.start]:02x}",
            where=str(path),
            remedy="save the file as UTF-8",
        ) from error
    if not isinstance(raw, dict):
        raise UsageError("a recipe is a mapping", where=str(path), remedy="see recipes/")
    for override in overrides or []:
        apply_override(raw, override)
    return check_recipe(raw, where=str(path))


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set `a.b=c` in place; the value is read as YAML."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UsageError(
            f"'{override}' is not of the form a.b=c", remedy="write for example data.path=my.jsonl"
        )
    *parents, last = key.split(".")
    node: Any = raw
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UsageError(f"'{key}': '{parent}' has no keys below it", remedy="check the path")
    node[last] = read_value(value, override)


def read_value(text: str, where: str) -> Any:
    """A value from the command line, read as YAML. Raises UsageError."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(
            f"'{text}' is no YAML value", where=where, remedy="put it into quotes: \"'...'\""
        ) from error


def check_recipe(raw: dict[str, Any], where: str) -> Recipe:
    """The whole recipe as a typed object; stages keep their raw keys until they are built."""
    recipe = check(Recipe, raw, where)
    for name, stage in recipe.stages.items():
        if name in RESERVED_STAGE_NAMES or not name.isidentifier():
            raise UsageError(
                f"a stage cannot be called '{name}'",
                where=f"{where}: stages",
                remedy="use letters, digits and _; 'model' and 'data' are taken",
            )
        if "method" not in stage:
            raise UsageError(
                f"stages.{name} has no method",
                where=where,
                remedy="add method: sft, bradley_terry, dpo, ppo, grpo, ... (`truing explain` "
                "lists them), preferences, best_of_n or evaluate",
            )
    return recipe


def check(schema: type[S], raw: Mapping[str, Any], where: str, prefix: str = "") -> S:
    """`raw` as a `schema`. Raises UsageError that names the key, the rule and the nearest name."""
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise explain_validation(error, schema, where, prefix) from error


def explain_validation(
    error: ValidationError, schema: type[BaseModel], where: str, prefix: str = ""
) -> UsageError:
    """The first problem pydantic found, in the words of a recipe."""
    problem = error.errors()[0]
    location = [str(part) for part in problem["loc"]]
    key = ".".join(filter(None, [prefix, *location]))
    if problem["type"] == "extra_forbidden":
        valid = _fields_at(schema, location[:-1])
        return UsageError(f"unknown key '{key}'", where=where, remedy=suggest(location[-1], valid))
    if problem["type"] == "missing":
        return UsageError(f"'{key}' is missing", where=where, remedy=f"add '{key}'")
    return UsageError(
        f"'{key}': {problem['msg']} (got {problem['input']!r})",
        where=where,
        remedy="correct the value; `truing explain recipe` lists every key",
    )


def _fields_at(schema: type[BaseModel], location: list[str]) -> list[str]:
    """Names a user may write at a dotted place of a schema."""
    for part in location:
        by_name = {f.alias or n: f.annotation for n, f in schema.model_fields.items()}
        inner = [t for t in _members(by_name.get(part)) if isinstance(t, type)]
        sections = [t for t in inner if issubclass(t, BaseModel)]
        if not sections:
            return []
        schema = sections[0]
    return [field.alias or name for name, field in schema.model_fields.items()]


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the annotation itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)
