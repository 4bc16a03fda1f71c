"""What `truing explain` says: read off the declarations, so it cannot disagree with them."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from truing import config, objectives, rewards
from truing.errors import UsageError, suggest

SECTIONS: dict[str, type[config.Section]] = {
    "recipe": config.Recipe,
    "model": config.Model,
    "lora": config.Lora,
    "data": config.Data,
    **config.PIPELINE_METHODS,
}


def explain(name: str) -> str:
    """The card of an objective, a reward, or a part of a recipe; without a name, the list.

    Raises UsageError with suggestions for a name there is none of.
    """
    if not name:
        parts = {
            "methods": [*objectives.names(), *config.PIPELINE_METHODS],
            "rewards": rewards.names(),
            "recipe": ["recipe", "model", "lora", "data"],
        }
        return "\n".join(f"{kind}: {', '.join(names)}" for kind, names in parts.items())
    if name in SECTIONS:
        return "\n".join([_heading(name, SECTIONS[name]), *_section(SECTIONS[name])])
    if name in objectives.names():
        return _objective(name)
    if name in rewards.names():
        kind = rewards.find(name)
        return "\n".join([_heading(name, kind), *_fields(_dataclass_fields(kind))])
    valid = [*SECTIONS, *objectives.names(), *rewards.names()]
    raise UsageError(f"nothing is called '{name}'", remedy=suggest(name, valid))


def _heading(name: str, kind: type[Any]) -> str:
    return f"{name}\n{'=' * len(name)}\n{inspect.getdoc(kind)}\n"


def _objective(name: str) -> str:
    from truing.rollouts import credit

    kind = objectives.find(name)
    lines = [
        f"{name}\n{'=' * len(name)}",
        f"{inspect.getdoc(sys.modules[kind.__module__])}\n",
        f"trains: {kind.trains}    averages over: {kind.unit}",
        f"needs: {', '.join(sorted(kind.needs)) or 'nothing but log-probs'}",
    ]
    lines += [
        f"before the first update {metric} must be {value:g}" + (f" ± {slack:g}" if slack else "")
        for metric, (value, slack) in kind.step_zero.items()
    ]
    lines += ["", f"{kind.__name__}: {inspect.getdoc(kind)}", ""]
    lines += _fields(_dataclass_fields(kind))
    schema: type[config.Section] = config.Offline
    if kind.credit:
        rule = credit.find(kind.credit)
        lines += ["", f"credit rule {kind.credit}: {inspect.getdoc(rule)}", ""]
        lines += _fields(_dataclass_fields(rule))
        schema = config.OnPolicy
    return "\n".join([*lines, "", "keys of every such stage", "", *_section(schema)])


def _dataclass_fields(kind: type[Any]) -> dict[str, FieldInfo]:
    fields: dict[str, FieldInfo] = kind.__pydantic_fields__
    return fields


def _section(schema: type[config.Section]) -> list[str]:
    return _fields({f.alias or n: f for n, f in schema.model_fields.items()})


def _fields(fields: dict[str, FieldInfo]) -> list[str]:
    lines = []
    for name, field in fields.items():
        default = "required" if field.default is PydanticUndefined else f"= {field.default!r}"
        if field.default_factory is not None:
            default = "= empty"
        limits = ", ".join(map(_limit, field.metadata))
        lines.append(f"  {name} {default}" + (f"   ({limits})" if limits else ""))
        lines += [f"      {line}" for line in (field.description or "").splitlines()]
    return lines


def _limit(rule: Any) -> str:
    """annotated_types' rules, as a person writes them."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "min_length": "length ≥"}
    return " and ".join(
        f"{sign} {getattr(rule, name):g}" for name, sign in signs.items() if hasattr(rule, name)
    )
