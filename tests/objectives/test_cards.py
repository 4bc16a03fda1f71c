"""Every card is whole and true: sections, papers, fields, and the value at the stated point."""

from __future__ import annotations

import doctest
import inspect
import re
import shlex
import sys
from typing import get_args

import pytest

from truing import objectives
from truing.config import PIPELINE_METHODS
from truing.errors import UsageError
from truing.explain import ROWS, command, describe, explain, families, knobs, limits, python
from truing.objectives._cards import LABELS, card_of, read_card, read_sources
from truing.objectives._worked import worked
from truing.training.method import resolve
from truing.verbs import single_stage

NAMES = objectives.names()
PRESETS = sorted(objectives.presets())
FIELDS = [(name, key) for name in NAMES for key in objectives.find(name).__pydantic_fields__]
every_objective = pytest.mark.parametrize("name", NAMES)
every_method = pytest.mark.parametrize("name", objectives.methods())

WHOLE = """A title.

    L = −log σ(h)

A legend.

Gradient: it pulls.
Implementations: all agree.
Source: Rafailov et al. 2023, "Direct Preference Optimization" (arXiv 2305.18290), eq. 7.

    >>> worked(DPO())
    0.5
"""


def page(kind):
    return sys.modules[kind.__module__].__doc__


@every_objective
def test_the_card_is_whole(name):
    card = read_card(page(objectives.find(name)), name)
    assert card.title[-1] in ".?"
    assert len(card.title) <= 100
    assert "=" in card.formula
    for text in (*card.notes, card.gradient, card.implementations):
        assert len(text) > 15, text


@every_method
def test_every_source_is_a_paper_one_can_find(name):
    for source in describe(name).sources:
        assert source.authors[0].isupper(), source.authors
        assert 1950 < source.year < 2100
        assert len(source.title) > 10
        if source.arxiv:
            year = 2000 + int(source.arxiv[:2])
            assert year <= source.year <= year + 2, "the year is not that of the arXiv number"
        else:
            assert len(source.place) > 3, f"where was '{source.title}' published?"


def test_a_paper_is_cited_in_one_way():
    """The same number, the same title and authors; and the other way round."""
    cited = {s for name in objectives.methods() for s in describe(name).sources}
    numbers, titles = {}, {}
    for source in cited:
        said = (source.authors, source.year, source.title)
        assert numbers.setdefault(source.arxiv or said, said) == said
        assert titles.setdefault(source.title, source.arxiv) == source.arxiv


@every_objective
def test_the_value_at_the_stated_point_is_the_codes(name):
    kind = objectives.find(name)
    names = {"worked": worked, kind.__name__: kind}
    example = doctest.DocTestParser().get_doctest(page(kind), names, name, None, 0)
    assert example.examples
    told = []
    doctest.DocTestRunner(verbose=False).run(example, out=told.append)
    assert not told, "".join(told)
    code, value = card_of(kind.__module__).example
    assert re.fullmatch(rf"worked\({kind.__name__}\(.*\)\)", code, re.DOTALL)
    assert eval(code, names) == pytest.approx(float(value), abs=1e-6)


@pytest.mark.parametrize(("name", "key"), FIELDS)
def test_every_field_is_described_and_bounded(name, key):
    field = objectives.find(name).__pydantic_fields__[key]
    assert len(field.description or "") > 20
    parts = (field.annotation, *get_args(field.annotation))
    if {int, float} & {getattr(part, "__origin__", part) for part in parts}:
        assert list(limits(field)), "a number has a range"


@every_method
def test_what_is_explained_is_what_is_declared(name):
    text, described = explain(name), describe(name)
    card, flat = described.card, " ".join(re.sub(r"\\\n|\n +\.\.\. ", " ", text).split())
    parts = [card.title, *card.notes, card.gradient, card.implementations, card.formula]
    parts += [inspect.getdoc(described.kind)]
    parts += [knob.text for knob in knobs(described.kind)]
    parts += [source.title for source in described.sources]
    parts += [source.where for source in described.sources]
    parts += described.method.objective.required
    parts += described.method.step_zero
    for part in parts:
        assert " ".join(part.split()) in flat
    assert command(described) in flat
    assert python(described)[-1][0] in flat
    assert max(map(len, text.splitlines())) <= 100


@every_method
def test_the_command_line_it_shows_is_accepted(name):
    described = describe(name)
    _, verb, *flags = shlex.split(command(described))
    assert verb == name
    at = flags.index("--output")
    recipe, *_ = single_stage(name, "M", "D", "out", flags[4:at] + flags[at + 2 :], False)
    resolve(name, recipe.stages[name], "command")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_changes_what_it_sets(name):
    preset = objectives.presets()[name]
    base, method = describe(preset.of).method, describe(name).method
    assert name not in NAMES
    assert preset.keys
    for key, value in preset.keys.items():
        assert key in (method if method.draws else base).knobs, f"{preset.of} has no {key}"
        assert base.knobs.get(key) != value, f"{key} is {value} without the preset"
        assert method.knobs[key] == value
    assert len(preset.summary) > 20
    text = explain(name)
    for key in preset.keys:
        assert f"    {key} = " in text


def test_without_a_name_everything_is_listed():
    listed = explain("")
    for name in (*objectives.methods(), *PIPELINE_METHODS, "vader", "recipe", "on_policy"):
        assert re.search(rf"\b{name}\b", listed), name
    for folder, names in families().items():
        assert folder in listed
        assert names


def test_a_misspelt_name_finds_the_nearest():
    for name in (*PRESETS[:1], "dpo", "vader"):
        with pytest.raises(UsageError, match=f"did you mean '{name}'"):
            explain(name[:-1] + "_" + name[-1:])


def test_the_rows_it_asks_for_are_rows_we_read():
    from truing.data.formats import KINDS

    known = {frozenset({"prompt", *kind.needs}) for kind in KINDS}
    assert all(frozenset(inside.split(", ")) in known for _, _, inside in ROWS)


# The reader itself


def test_a_whole_docstring_is_read():
    card = read_card(WHOLE, "m")
    assert card.title == "A title."
    assert card.formula == "    L = −log σ(h)"
    assert card.notes == ("A legend.",)
    assert card.gradient == "it pulls."
    assert card.example == ("worked(DPO())", "0.5")
    (source,) = card.sources
    assert (source.authors, source.year, source.arxiv) == ("Rafailov et al.", 2023, "2305.18290")
    assert source.where == "eq. 7"


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (WHOLE, "no title"),
        ("    L = −log σ(h)\n\n", "no formula"),
        ("A legend.\n\n", "no notes"),
        ("Gradient: it pulls.\n", "no Gradient"),
        (" it pulls.", "no Gradient"),
        ("Implementations: all agree.\n", "no Implementations"),
        (WHOLE[WHOLE.index("Source:") : WHOLE.index("    >>>")], "no Source"),
        (WHOLE[WHOLE.index("    >>>") :], "no >>> worked"),
        ("worked", "no >>> worked"),
        (" 2023,", "is no paper"),
    ],
)
def test_a_docstring_that_lacks_something_is_refused(lost, words):
    with pytest.raises(UsageError, match=words):
        read_card(WHOLE.replace(lost, ""), "m")


def test_sections_stand_in_order():
    with pytest.raises(UsageError, match="order"):
        read_card(
            WHOLE.replace("Gradient: it pulls.\n", "").replace(
                "    >>>", "Gradient: late.\n\n    >>>"
            ),
            "m",
        )
    assert LABELS == ("Gradient", "Implementations", "Source")


def test_papers_are_read_apart():
    text = """Ho and Li 2024, "One; or more" (arXiv 2401.00001), eq. 1; table 2; the scale:
        van Po 2020, "Two" (Journal 8(3)); Ki et al. 2019, "Three"."""
    first, second, third = read_sources(text, "m")
    assert first.title == "One; or more"
    assert first.where == "eq. 1; table 2"
    assert (second.authors, second.place, second.where) == ("van Po", "Journal 8(3)", "the scale")
    assert (third.arxiv, third.place, third.where) == (None, "", "")
    for wrong in ("", "somebody once", 'Ho 2024 "No comma" (arXiv 2401.00001)'):
        with pytest.raises(UsageError, match="is no paper"):
            read_sources(wrong, "m")
