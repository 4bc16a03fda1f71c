"""What `truing explain` says: read off cards and declarations, so it cannot disagree with them."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import shlex
import sys
import textwrap
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from truing import config, objectives, registry, rewards
from truing.errors import UsageError, suggest
from truing.objectives._cards import Card, Source, card_of, read_card, read_sources
from truing.objectives._presets import Preset

if TYPE_CHECKING:
    from truing.batch import Column
    from truing.objectives.base import Objective
    from truing.training.method import Method

WIDTH = 80
CREDIT, REWARD = "truing.rollouts.credit", "rewards/"
CURATION = "truing.rollouts.curation"
SECTIONS: dict[str, type[config.Section]] = {
    "recipe": config.Recipe,
    "model": config.Model,
    "lora": config.Lora,
    "data": config.Data,
    "offline": config.Offline,
    "on_policy": config.OnPolicy,
    "online": config.Online,
    "actor_critic": config.ActorCritic,
    **config.PIPELINE_METHODS,
}
ROWS = (
    ("step_label_S", "steps.jsonl", "prompt, completions, labels"),
    ("chosen_G", "pairs.jsonl", "prompt, chosen, rejected"),
    ("label_C", "verdicts.jsonl", "prompt, completion, label"),
    ("scores_C", "scored.jsonl", "prompt, completions, scores"),
)
"""A column that only rows provide, what a file of such rows may be called, what is in a row."""


class Knob(NamedTuple):
    """A key a user may set."""

    name: str
    default: str
    limits: str
    text: str


class Described(NamedTuple):
    """A method as its author and its declarations describe it, presets included."""

    name: str
    family: str
    card: Card
    kind: type[Objective]
    method: Method
    """As a recipe gets it that says nothing else."""
    preset: Preset | None

    @property
    def draws(self) -> bool:
        """Whether it always learns from its own samples, so that it needs prompts and a reward."""
        return objectives.draws(self.name)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The papers: a preset's own, or the card's."""
        if self.preset is None:
            return self.card.sources
        return read_sources(self.preset.source, self.name)


def explain(name: str) -> str:
    """The card of a method, reward or credit rule, or a part of a recipe; without a name, the list.

    Raises UsageError with suggestions for a name there is none of.
    """
    if not name:
        return _overview()
    if name in objectives.methods():
        return _card(describe(name))
    if name in SECTIONS:
        return "\n".join([_heading(name), _doc(SECTIONS[name]), "", *_knobs(section(name))])
    rules = {rule: room for room in (CREDIT, CURATION) for rule in registry.names(room)}
    own = name.removeprefix(REWARD)  # a reward may be called as a method is: rewards/mixture
    if own != name or ":" in name or name in rewards.names() or name in rules:
        kind = registry.find(rules.get(name, "truing.rewards"), own, object)
        if hasattr(kind, "trains"):
            return _card(describe(name))
        return "\n".join([_heading(name), _doc(kind), "", *_knobs(knobs(kind))])
    valid = [*SECTIONS, *objectives.methods(), *rewards.names(), *rules]
    raise UsageError(f"nothing is called '{name}'", remedy=suggest(name, valid))


def describe(name: str) -> Described:
    """Everything that is declared of a method. Raises UsageError for an unfit docstring."""
    from truing.training.method import resolve

    kind = objectives.find(name)
    stage = {"method": name, **({"reward": "REWARD"} if objectives.draws(name) else {})}
    return Described(
        name,
        kind.__module__.removeprefix(objectives.__name__ + ".").rpartition(".")[0],
        read_card(inspect.getdoc(sys.modules[kind.__module__]) or "", kind.__module__),
        kind,
        resolve(name.rpartition(":")[2], stage, "truing explain"),
        objectives.presets().get(name),
    )


def families() -> dict[str, list[str]]:
    """Folder -> the methods in it, presets after what they are presets of. Needs no torch."""
    found: dict[str, list[str]] = {}
    for name, module in sorted(registry.names(objectives.__name__).items()):
        folder = module.removeprefix(objectives.__name__ + ".").rpartition(".")[0]
        presets = [p for p, preset in objectives.presets().items() if preset.of == name]
        found.setdefault(folder, []).extend([name, *sorted(presets)])
    return dict(sorted(found.items()))


def family_title(folder: str) -> str:
    """What a folder of objectives says of itself."""
    spec = importlib.util.find_spec(f"{objectives.__name__}.{folder}") if folder else None
    if spec is None or spec.origin is None:
        return "Several objectives at once."
    page = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return page.partition("\n")[0]


def headline(name: str) -> str:
    """One line on a method: its card's title, or what a preset makes of another method."""
    if name in objectives.presets():
        return objectives.presets()[name].summary
    return card_of(registry.names(objectives.__name__)[name]).title


def columns(objective: Objective) -> dict[str, Column]:
    """The columns an objective reads as its fields are set, with what the table says of them."""
    from truing.batch import COLUMNS

    return {name: COLUMNS[name] for name in COLUMNS if name in objective.required}


def rows(described: Described) -> tuple[str, str]:
    """A file name for the rows a method needs, and what is in each."""
    if described.draws:
        return "prompts.jsonl", "prompt"
    needed = described.method.objective.required
    given = ((file, inside) for column, file, inside in ROWS if column in needed)
    file, inside = next(given, ("demonstrations.jsonl", "prompt, completion"))
    more = [name for name in ("margin", "probability") if f"{name}_G" in needed]
    return file, ", ".join([inside, *more])


def command(described: Described) -> str:
    """A command line that trains with the card's own settings."""
    parts = ["truing", described.name, "--model", "M", "--data", rows(described)[0]]
    parts += ["--reward", "R"] if described.draws else []
    parts += ["--output", f"runs/{described.name}"]
    if described.preset is None:
        for key, value in _example_keys(described.card).items():
            parts += [f"--{key.replace('_', '-')}", written(value)]
    return shlex.join(parts)


def python(described: Described) -> list[tuple[str, str]]:
    """Statements with what they print: the value at the stated point."""
    from truing.objectives._worked import worked

    kind, keys = described.kind, described.method.knobs
    expression, value = described.card.example
    if described.preset is not None:
        default = kind()
        own = (
            f"{k.name}={_quoted(keys[k.name])}"
            for k in knobs(kind)
            if keys[k.name] != getattr(default, k.name)
        )
        expression = f"worked({kind.__name__}({', '.join(own)}))"
        value = str(worked(described.method.objective))
    return [
        ("from truing import worked", ""),
        (f"from {kind.__module__} import {kind.__name__}", ""),
        (expression, value),
    ]


def stated_point() -> str:
    """The small batch on which every objective's value is documented."""
    from truing.objectives import _worked

    return inspect.getdoc(_worked) or ""


def knobs(kind: type[Any], values: Mapping[str, Any] | None = None) -> list[Knob]:
    """The fields of a dataclass; `values` are those a preset or a method sets."""
    fields: dict[str, FieldInfo] = kind.__pydantic_fields__
    return [_knob(name, field, values or {}) for name, field in fields.items()]


def section(name: str) -> list[Knob]:
    """The keys of a part of a recipe."""
    fields = SECTIONS[name].model_fields
    return [_knob(field.alias or key, field, {}) for key, field in fields.items()]


def _knob(name: str, field: FieldInfo, values: Mapping[str, Any]) -> Knob:
    default = values.get(name, field.get_default(call_default_factory=True))
    shown = "required" if default is PydanticUndefined else f"= {written(default)}"
    return Knob(name, shown, ", ".join(limits(field)), field.description or "")


def limits(field: FieldInfo) -> Iterator[str]:
    """The values a field accepts, as a person writes them: bounds, or the names there are."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "min_length": "length ≥"}
    found = [*field.metadata]
    for part in (field.annotation, *typing.get_args(field.annotation)):
        if typing.get_origin(part) is typing.Literal:
            yield " | ".join(map(str, typing.get_args(part)))
        for rule in getattr(part, "__metadata__", ()):
            found += rule.metadata if isinstance(rule, FieldInfo) else [rule]
    for rule in found:
        for name, sign in signs.items():
            if getattr(rule, name, None) is not None:
                yield f"{sign} {getattr(rule, name):g}"


def _example_keys(card: Card) -> dict[str, Any]:
    """The fields that the card's example sets."""
    call = ast.parse(card.example[0], mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.args[0], ast.Call)
    return {str(key.arg): ast.literal_eval(key.value) for key in call.args[0].keywords}


def _quoted(value: Any) -> str:
    """A value as our code has it: repr, with double quotes."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def written(value: Any) -> str:
    """A value as a recipe has it."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


# How it is laid out


def _overview() -> str:
    lines = ["`truing explain NAME` says everything about one of these.", ""]
    for folder, names in families().items():
        lines.append(f"{folder or 'combined'}: {family_title(folder)}")
        width = max(map(len, names)) + 4
        for name in names:
            start = f"    {name}" if name in objectives.presets() else f"  {name}"
            lines += _prose(headline(name), f"{start:{width}}  ", " " * (width + 2))
        lines.append("")
    taken = {*SECTIONS, *objectives.methods()}
    others = {
        "pipeline": [*config.PIPELINE_METHODS],
        "credit": sorted(registry.names(CREDIT)),
        "curation": sorted(registry.names(CURATION)),
        "rewards": [REWARD + n if n in taken else n for n in rewards.names()],
        "recipe": [name for name in SECTIONS if name not in config.PIPELINE_METHODS],
    }
    return "\n".join([*lines, *(f"{kind}: {', '.join(names)}" for kind, names in others.items())])


def _card(d: Described) -> str:
    card, keys = d.card, d.method.knobs
    lines = [_heading(d.name + (f"   ({d.family})" if d.family else ""))]
    lines += [] if d.preset is None else [*_preset(d), ""]
    lines += [*_prose(card.title), "", card.formula, ""]
    lines += [line for note in card.notes for line in (*_prose(note), "")]
    lines += _part("Gradient", _prose(card.gradient))
    lines += _part("Keys", _knobs(knobs(d.kind, keys)))
    rule = d.method.credit or d.method.curation
    if rule is not None:
        role = "credit rule" if d.kind.credit else "curation"
        text = [*_prose(_doc(type(rule))), "", *_knobs(knobs(type(rule), keys))]
        lines += _part(f"Keys of its {role}, {d.kind.credit or keys['curation']}", text)
    schema = "on_policy" if d.kind.credit else "online" if d.draws else "offline"
    common = ", ".join(knob.name for knob in section(schema))
    lines += _part(f"Keys of every such stage (truing explain {schema})", _prose(common))
    lines += _part("Needs", _needs(d)) + _part("Before the first update", _step_zero(d))
    lines += _part(f"{d.kind.__name__}, in code", _prose(_doc(d.kind)))
    lines += _part("Where implementations disagree, and our choice", _prose(card.implementations))
    lines += _part("Source", [line for source in d.sources for line in _paper(source)])
    return "\n".join([*lines, *_part("Try it", _try(d))]).rstrip()


def _preset(d: Described) -> Iterator[str]:
    """What a preset is, and what it changes."""
    assert d.preset is not None
    yield from _prose(f"{d.preset.summary} It is `{d.preset.of}` with")
    yield ""
    base = describe(d.preset.of).method.knobs
    for key, value in d.preset.keys.items():
        usual = f"   ({d.preset.of}: {written(base[key])})" if key in base else ""
        yield f"    {key} = {written(value)}{usual}"
    yield ""
    yield f"{d.preset.of}, as this preset sets it:"


def _needs(d: Described) -> Iterator[str]:
    objective = d.method.objective
    yield f"It trains: {objective.trains}. Its loss is the mean over a step's {objective.unit}."
    needed = columns(objective)
    width = max(map(len, [*needed, *objective.extra_outputs]), default=0)
    for name, column in needed.items():
        source = "its own look at the whole step" if name in d.kind.prepared else column.provider
        text = f"{column.meaning} [{column.unit}]; from {source}"
        yield from _prose(text, f"{name:{width}}  ", " " * (width + 2))
    for name in sorted(objective.extra_outputs):
        yield f"{name:{width}}  from the model itself"
    if objective.moves_reference:
        yield "The reference follows the policy, so it cannot be computed beforehand."


def _step_zero(d: Described) -> Iterator[str]:
    for metric, (value, slack) in d.method.step_zero.items():
        yield f"{metric} must be {value:g}" + (f" ± {slack:g}" if slack else " exactly")
    yield "gradients must be finite and not all zero"


def _try(d: Described) -> Iterator[str]:
    file, inside = rows(d)
    if ":" in d.name:
        yield f"a recipe's stage with method: {d.name}"
    else:
        kept = re.sub(r"(--[\w-]+) ", "\\1\u00a0", command(d))  # a flag stays with its value
        yield from " \\\n".join(_prose(kept, "$ ", "    ")).replace("\u00a0", " ").splitlines()
    yield ""
    yield "M  a folder, hub id, .gguf file, package:NAME or random:llama"
    if d.draws:
        yield "R  a reward model's folder, or a reward by name"
    yield f"{file}  rows with {inside}"
    yield ""
    for statement, printed in python(d):
        yield from _prose(statement, ">>> ", "...     ")
        yield from [printed] if printed else []
    yield ""
    yield from _prose(stated_point())


def _paper(source: Source) -> Iterator[str]:
    yield from _prose(f'{source.authors} {source.year}, "{source.title}"', "", "    ")
    place = f"https://arxiv.org/abs/{source.arxiv}" if source.arxiv else source.place
    yield from _prose(place + (f"  {source.where}" if source.where else ""), "    ")


def _part(title: str, lines: Iterable[str]) -> list[str]:
    text = list(lines)
    return [title, *textwrap.indent("\n".join(text), "  ").splitlines(), ""] if text else []


def _knobs(knobs: Iterable[Knob]) -> Iterator[str]:
    for name, default, limits, text in knobs:
        yield from _prose(f"{name} {default}" + (f"   ({limits})" if limits else ""), "", "    ")
        yield from _prose(text, "    ")


def _doc(kind: type[Any]) -> str:
    return inspect.getdoc(kind) or ""


def _heading(title: str) -> str:
    return f"{title}\n{'=' * len(title)}"


def _prose(text: str, first: str = "", rest: str | None = None) -> list[str]:
    """Paragraphs filled to the width; indented ones (formulas) stay as they are."""
    after = first if rest is None else rest
    lines: list[str] = []
    for part in text.split("\n\n"):
        kept = part.startswith((" ", "- "))
        filled = textwrap.wrap(
            part, WIDTH - 2, initial_indent=first, subsequent_indent=after, break_on_hyphens=False
        )
        lines += [*(part.splitlines() if kept else filled), ""]
    return lines[:-1]
