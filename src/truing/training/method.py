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
from truing.rollouts import credit, curation
from truing.rollouts.credit.base import Credit
from truing.rollouts.curation.base import Curation
from truing.training.arrange import kinds_for
from truing.training.together import Together

NO_DRIFT = {"objective/kl": (0.0, 1e-6)}
"""What must hold of the first rollout: nothing has moved yet."""


@dataclass(frozen=True, slots=True)
class Method:
    """A training stage, resolved: its knobs, its objective, and what it makes of its own samples if
    it learns from those: advantages (credit) or rows (curation)."""

    training: config.Training
    objective: Objective
    credit: Credit | None
    curation: Curation | None = None

    @property
    def step_zero(self) -> dict[str, tuple[float, float]]:
        """Metric -> (value, tolerance) that must hold before the first update."""
        rule = {} if self.credit is None else dict(self.credit.step_zero)
        if self.curation is not None and self.reads_reference:
            rule = NO_DRIFT
        return dict(self.objective.step_zero) | rule

    @property
    def draws(self) -> bool:
        """Whether it learns from completions the policy draws, not from rows that are there."""
        return self.credit is not None or self.curation is not None

    @property
    def reads_reference(self) -> bool:
        """Whether its loss compares the policy with a reference."""
        return "reference_logps_N" in self.objective.required

    @property
    def moves_reference(self) -> bool:
        """Whether the reference is anything but the weights that training began with."""
        training = self.training
        renewed = isinstance(training, config.Online) and training.sync_reference_rollouts
        return self.objective.moves_reference or bool(renewed)

    @property
    def caches_reference(self) -> bool:
        """Whether the reference's log-probs are computed once, before training."""
        training = self.training
        return isinstance(training, config.Offline) and training.reference_logps == "cached"

    @property
    def knobs(self) -> dict[str, Any]:
        """Every key with its value, as config.yaml shows it."""
        parts: dict[str, Any] = self.training.model_dump(mode="json", by_alias=True)
        for part in (self.objective, self.credit, self.curation):
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
    preset = objectives.presets().get(str(raw["method"]))
    defaults = {**objective_class.recipe_defaults, **(preset.keys if preset else {})}
    keys = {**defaults, **raw}
    rule_class = _rule(objective_class, keys, where, prefix)
    schema = _schema(objective_class, rule_class)
    common = {f.alias or n for n, f in schema.model_fields.items()}
    own = [_field_names(part) for part in (objective_class, rule_class) if part]
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
    rule = None if rule_class is None else _instance(rule_class, keys, where, prefix)
    together = Together(keys, training, objective, rule, where, prefix)
    together.check(own_keys=raw)
    if isinstance(rule, Curation):
        return Method(training, objective, None, rule)
    return Method(training, objective, rule)


def _rule(
    kind: type[Objective], keys: dict[str, Any], where: str, prefix: str
) -> type[Credit] | type[Curation] | None:
    """What turns own samples into something to learn from; None for training on rows. The name of
    the curation is put into `keys`."""
    if kind.credit is not None:
        return credit.find(kind.credit)
    if kind.curation is None and not {"reward", "curation"} & keys.keys():
        return None
    if kind.trains == "reward":
        raise UsageError(
            f"'{prefix}.reward': this method trains a reward model, which draws no completions",
            where=where,
            remedy="make its rows with a stage `method: preferences`, and leave reward out",
        )
    needs = _instance(kind, keys, where, prefix).required
    keys["curation"] = keys.get("curation") or kind.curation or curation.usual(kinds_for(needs))
    try:
        found = curation.find(str(keys["curation"]))
    except UsageError as error:
        raise UsageError(
            f"'{prefix}.curation': {error.what}", where=where, remedy=error.remedy
        ) from error
    if found.makes not in kinds_for(needs):
        raise UsageError(
            f"'{prefix}.curation': {keys['curation']} makes {found.makes} rows, and this method "
            f"learns from {' or '.join(kinds_for(needs))} rows",
            where=where,
            remedy=f"set curation to {curation.usual(kinds_for(needs))}, or leave it out",
        )
    if "of_reference_C" in needs and not found.draws_from_reference:
        raise UsageError(
            f"'{prefix}.curation': {keys['curation']} draws nothing from the reference, and this "
            "method needs to know what the reference drew",
            where=where,
            remedy="leave curation out",
        )
    return found


def _schema(
    objective: type[Objective], rule: type[Credit] | type[Curation] | None
) -> type[config.Training]:
    """The training fields of a method, by what it declares."""
    if rule is not None and issubclass(rule, Curation):
        return config.Online
    if objective.credit is None:
        return config.Offline
    return config.ActorCritic if objective.trains == "policy+value" else config.OnPolicy


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
