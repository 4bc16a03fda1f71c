"""Every objective there is, in every mode it has: found, not listed.

A subject is a file's class with its default fields, with each choice that it offers, with the
fields of each preset, and with the settings of MORE that switch further terms on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, Literal, get_args, get_origin

import pytest

from truing import objectives
from truing.objectives.base import Objective

MORE: dict[str, list[dict[str, Any]]] = {
    "bradley_terry": [{"center_coefficient": 0.1, "margin_coef": 0.5, "label_smoothing": 0.1}],
    "ppo": [{"dual_clip": 1.1, "ptx_coef": 0.5}, {"cliprange_value": None}],
    "grpo": [{"beta": 0}, {"dual_clip": 1.1, "epsilon_high": 0.4}],
    "cispo": [{"ratio_max": 1.2, "ratio_min": 0.9}],
    "simpo": [{"sft_weight": 0.3}],
    "mixture": [
        {"parts": [{"method": "sft", "weight": 0.5}, {"method": "ipo", "weight": 2.0, "tau": 0.5}]}
    ],
}


def choices(cls: type[Objective], knob: str) -> tuple[Any, ...]:
    """What a field that is one of a few may be; empty for a number."""
    annotation = cls.__pydantic_fields__[knob].annotation  # type: ignore[attr-defined]
    if annotation is bool:
        return (False, True)
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _settings(name: str, cls: type[Objective]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield name, {}
    for field in fields(cls):  # type: ignore[arg-type]
        for choice in choices(cls, field.name):
            yield f"{name}[{field.name}={choice}]", {field.name: choice}
    for knobs in MORE.get(name, []):
        yield f"{name}[{','.join(map(str, knobs))}]", knobs


def _subjects() -> dict[str, Objective]:
    found: dict[str, Objective] = {}
    for name in objectives.names():
        cls = objectives.find(name)
        for title, knobs in _settings(name, cls):
            subject = cls(**knobs)
            if subject not in found.values():
                found[title] = subject
    for name, preset in objectives.presets().items():
        cls = objectives.find(name)
        own = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        subject = cls(**{key: v for key, v in preset.keys.items() if key in own})
        if subject not in found.values():
            found[name] = subject
    return found


SUBJECTS = _subjects()
CLASSES = {name: objectives.find(name) for name in objectives.names()}

every_subject = pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS.keys())
every_class = pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES.keys())


def raw_columns(objective: Objective) -> frozenset[str]:
    """Columns that must be there before the objective prepares its own."""
    return objective.required - objective.prepared


def heads(objective: Objective) -> tuple[str, ...]:
    """The outputs that learn."""
    if objective.trains == "reward":
        return ("scores_S",) if objective.unit == "steps" else ("scores_C",)
    return ("logps_N", "values_N") if objective.trains == "policy+value" else ("logps_N",)


def undrawn(subject: Objective) -> Objective:
    """The subject without chance: β-DPO draws the pairs it keeps in their order, so keep all."""
    return replace(subject, keep_ratio=1.0) if hasattr(subject, "keep_ratio") else subject  # type: ignore[type-var]
