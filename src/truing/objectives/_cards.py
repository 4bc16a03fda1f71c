"""A method's module docstring as a typed card; what `truing explain` and the docs are made from.

It has, in this order: a title; the formula, indented by 4; notes; `Gradient:`;
`Implementations:`; `Source:` with papers as `Authors year, "Title" (arXiv NNNN.NNNNN), where`
(another place of publication may stand in the brackets), separated by `; `; and one doctest,
`>>> worked(...)`, at the stated point. Reading a card imports no torch.
"""

from __future__ import annotations

import ast
import doctest
import importlib.util
import inspect
import re
from dataclasses import dataclass
from pathlib import Path

from truing.errors import UsageError

LABELS = ("Gradient", "Implementations", "Source")
_LABEL = re.compile(rf"^({'|'.join(LABELS)}):", re.MULTILINE)
_PAPER = re.compile(
    r'(?:^|; )(?:(?P<role>[^";:]+): )?(?P<authors>[^";:\d]+) (?P<year>\d{4}), "(?P<title>[^"]+)"'
    r"(?: \((?P<place>(?:[^()]|\([^()]*\))+)\))?(?P<where>(?:(?!; [^;\"]+ \d{4}, \")[^\"])*)"
)


@dataclass(frozen=True, slots=True)
class Source:
    """A paper, and what in it."""

    authors: str
    year: int
    title: str
    arxiv: str | None
    """Its number, or None for what is not on arXiv."""
    place: str
    """Where it was published: 'arXiv NNNN.NNNNN', a journal; '' if the author did not say."""
    where: str
    """Which part of the method is from it, and the equation or section."""


@dataclass(frozen=True, slots=True)
class Card:
    """What an author says of a method."""

    title: str
    formula: str
    notes: tuple[str, ...]
    """Paragraphs: the legend, what is special, the optimum."""
    gradient: str
    implementations: str
    sources: tuple[Source, ...]
    example: tuple[str, str]
    """An expression and its value."""


def card_of(module: str) -> Card:
    """The card of a module that need not be imported. Raises UsageError for an unfit docstring."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    page = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    return read_card(page or "", module)


def read_card(docstring: str, module: str) -> Card:
    """A docstring as a card. Raises UsageError that names the section that is missing."""
    text = inspect.cleandoc(docstring)
    prose = re.split(r"^ *>>>", text, maxsplit=1, flags=re.MULTILINE)[0]
    head, *labelled = _LABEL.split(prose)
    title, *paragraphs = filter(None, head.strip("\n").split("\n\n")) if head else ("",)
    formula = [part for part in paragraphs if part.startswith("    ")]
    notes = [part for part in paragraphs if not part.startswith("    ")]
    labels = dict(zip(labelled[::2], map(str.strip, labelled[1::2]), strict=True))
    worked = [e for e in doctest.DocTestParser().get_examples(text) if "worked(" in e.source]
    sections = {"title": title, "formula": formula, "notes": notes}
    sections |= {f"{name}:": labels.get(name) for name in LABELS} | {">>> worked(...)": worked}
    for name, content in sections.items():
        if not content:
            raise UsageError(f"the docstring has no {name}", where=module, remedy=str(__doc__))
    if tuple(labelled[::2]) != LABELS:
        raise UsageError("sections out of order", where=module, remedy=", ".join(LABELS))
    return Card(
        title=" ".join(title.split()),
        formula="\n\n".join(formula),
        notes=tuple(notes),
        gradient=labels["Gradient"],
        implementations=labels["Implementations"],
        sources=read_sources(labels["Source"], module),
        example=(worked[0].source.strip(), worked[0].want.strip()),
    )


def read_sources(text: str, where: str) -> tuple[Source, ...]:
    """Papers separated by `; `. Raises UsageError for what cannot be read as one."""
    line = " ".join(text.split())
    papers = [paper.groupdict() for paper in _PAPER.finditer(line)]
    rest = _PAPER.sub("", line).strip(" ;.")
    if rest or not papers:
        raise UsageError(
            f"'{rest}' is no paper",
            where=where,
            remedy='write: Authors year, "Title" (arXiv NNNN.NNNNN), eq. 1; Authors year, ...',
        )
    return tuple(_source(**paper) for paper in papers)


def _source(
    role: str | None, authors: str, year: str, title: str, place: str | None, where: str
) -> Source:
    number = re.fullmatch(r"arXiv (\d{4}\.\d{4,5})", place or "")
    parts = filter(None, [role, where.strip(" ,.")])
    arxiv = number[1] if number else None
    return Source(authors, int(year), title, arxiv, place or "", ", ".join(parts))
