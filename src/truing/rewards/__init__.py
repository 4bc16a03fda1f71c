"""One file per reward, found by its name: `make("vader")`. Importing this room needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from truing import registry
from truing.errors import UsageError
from truing.rewards.base import Reward
from truing.rewards.function import Function, load
from truing.rewards.model import Model

LoadModel = Callable[[Model], Reward]
"""Opens a reward model: networks are another room's."""


def names() -> list[str]:
    """The rewards there are."""
    return sorted(registry.names(__name__))


def find(name: str) -> type[Reward]:
    """The reward called `name`, or `module:Class`. Raises UsageError with suggestions."""
    return registry.find(__name__, name, Reward)  # type: ignore[type-abstract]


def make(
    spec: str | Mapping[str, Any] | Callable[..., Any],
    load_model: LoadModel | None = None,
    stages: Collection[str] = (),
) -> Reward:
    """A reward from

        vader                                    its name
        {name: length, target: 200}              its name and fields
        path/to/folder                           a reward model: a sequence classifier
        a name in `stages`                       the same, which that stage trained
        my_module:my_function, my_file.py:f      a function with TRL's signature, or a Reward class
        a callable                               the same, in Python

    `load_model` opens reward models; without it they are refused when they are first asked.
    Raises UsageError.
    """
    if isinstance(spec, Reward):
        return spec

    def inner(part: Any) -> Reward:
        return make(part, load_model, stages)

    if isinstance(spec, str) and (spec in stages or Path(spec, "config.json").is_file()):
        spec = {"name": "model", "path": spec}
    if isinstance(spec, str):
        spec = {"name": spec}
    if callable(spec):
        return _from_thing(spec, {}, inner)
    fields = dict(spec)
    if "name" not in fields:
        raise UsageError("a reward needs a name", remedy="write {name: vader}")
    name = str(fields.pop("name"))
    if ":" in name:
        return _from_thing(load(name), fields, inner)
    reward = _instance(find(name), fields, inner)
    return load_model(reward) if isinstance(reward, Model) and load_model else reward


def _from_thing(thing: Any, fields: Mapping[str, Any], inner: Callable[[Any], Reward]) -> Reward:
    """A class of rewards with its fields, a reward, or a function that becomes one."""
    if isinstance(thing, type) and issubclass(thing, Reward):
        return _instance(thing, fields, inner)
    if fields:
        raise UsageError(
            f"a function has no fields, and there are: {', '.join(fields)}",
            remedy="derive a class from truing.rewards.base.Reward, or leave them out",
        )
    return thing if isinstance(thing, Reward) else Function(thing)


def _instance(kind: type[Any], fields: Mapping[str, Any], inner: Callable[[Any], Reward]) -> Reward:
    """A reward of this class; `inner` makes the rewards it is made of."""
    if not hasattr(kind, "__pydantic_validator__"):  # anyone's own class
        try:
            made: Reward = kind(**fields)
        except TypeError as error:
            raise UsageError(
                f"{kind.__name__}: {error}", remedy="correct the reward's fields"
            ) from error
        return made
    try:
        checked: Reward = TypeAdapter(kind).validate_python(dict(fields), context={"make": inner})
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join([kind.__name__, *map(str, problem["loc"])])
        raise UsageError(
            f"{place}: {problem['msg']}", remedy="correct the reward's fields"
        ) from error
    return checked
