"""A training stage's keys, sorted to the classes they belong to. Loads no weights.

The objective's and the credit rule's fields stand beside the training fields in a recipe, so an
unknown key is unknown to all three, and the suggestion comes from all three.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from truing import config, objectives
from truing.errors import UsageError, suggest
from truing.objectives.base import Objective
from truing.rollouts import credit
from truing.rollouts.credit.base import Credit


@dataclass(frozen=True, slots=True)
class Method:
    """A training stage, resolved: its knobs, its objective, and its credit rule if it has one."""

    training: config.Training
    objective: Objective
    credit: Credit | None

    @property
    def step_zero(self) -> dict[str, tuple[float, float]]:
        """Metric -> (value, tolerance) that must hold before the first update."""
        rule = {} if self.credit is None else dict(self.credit.step_zero)
        return dict(self.objective.step_zero) | rule

    @property
    def caches_reference(self) -> bool:
        """Whether the reference's log-probs are computed once, before training."""
        training = self.training
        return isinstance(training, config.Offline) and training.reference_logps == "cached"

    @property
    def knobs(self) -> dict[str, Any]:
        """Every key with its value, as config.yaml shows it."""
        parts: dict[str, Any] = self.training.model_dump(mode="json", by_alias=True)
        for part in (self.objective, self.credit):
            if part is not None:
                parts |= {f.name: getattr(part, f.name) for f in fields(part)}  # type: ignore[arg-type]
        return parts


def resolve(name: str, raw: Mapping[str, Any], where: str) -> Method:
    """A training stage from its raw keys. Raises UsageError that names the key and its remedy."""
    prefix = f"stages.{name}"
    try:
        objective_class = objectives.find(str(raw["method"]))
    except UsageError as error:
        valid = [*objectives.methods(), *config.PIPELINE_METHODS]
        raise UsageError(
            f"{prefix}.method: {error.what}", where=where, remedy=suggest(str(raw["method"]), valid)
        ) from error
    credit_class = credit.find(objective_class.credit) if objective_class.credit else None
    preset = objectives.presets().get(str(raw["method"]))
    defaults = {**objective_class.recipe_defaults, **(preset.keys if preset else {})}
    keys = {**defaults, **raw}
    schema = config.OnPolicy if credit_class else config.Offline
    common = {f.alias or n for n, f in schema.model_fields.items()}
    own = [_field_names(part) for part in (objective_class, credit_class) if part]
    known = common.union(*own)
    for key in keys:
        if key not in known:
            raise UsageError(
                f"unknown key '{prefix}.{key}'", where=where, remedy=suggest(key, known)
            )
    training = config.check(schema, {k: v for k, v in keys.items() if k in common}, where, prefix)
    # a field that the stage has too (max_completion_length) is the stage's
    shared = {key: getattr(training, key) for key in common & set().union(*own)}
    keys |= shared
    objective = _instance(objective_class, keys, where, prefix)
    rule = None if credit_class is None else _instance(credit_class, keys, where, prefix)
    method = Method(training, objective, rule)
    if method.caches_reference:
        _check_cached(objective, where, prefix)
    return method


def _check_cached(objective: Objective, where: str, prefix: str) -> None:
    """Only a reference that there is, and that stands still, can be computed beforehand."""
    if "reference_logps_N" not in objective.required:
        why = "this method reads no reference"
    elif objective.moves_reference:
        why = "this method moves its reference"
    else:
        return
    raise UsageError(
        f"'{prefix}.reference_logps': cached, but {why}",
        where=where,
        remedy="set it to online, or leave it out",
    )


def _field_names(kind: type[Any]) -> set[str]:
    return {field.name for field in fields(kind)}


def _instance(kind: type[Any], raw: Mapping[str, Any], where: str, prefix: str) -> Any:
    """A dataclass from the keys that are its own."""
    mine = {key: value for key, value in raw.items() if key in _field_names(kind)}
    try:
        return TypeAdapter(kind).validate_python(mine)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join([prefix, *map(str, problem["loc"])])
        raise UsageError(
            f"'{key}': {problem['msg']} (got {problem['input']!r})",
            where=where,
            remedy="`truing explain " + kind.__module__.rpartition(".")[2] + "` shows its range",
        ) from error
