"""What a run says of rows that it leaves out or that deserve a look: why, how many, where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypedDict

from truing.data.formats import Dropped
from truing.groups import Group

MOST_PLACES = 20
"""Places that run.json names for each reason. The count beside them is of all rows."""
REPEATED, CONTRADICTED = "repeat an earlier row word for word", "prefer what another row rejects"


class Declared(TypedDict):
    """Rows of one reason, as run.json holds them."""

    rows: int
    places: list[str]
    """`file:line (detail)` of the first ones, in the order of the file."""


def declared(reasons: Mapping[str, Sequence[str]]) -> dict[str, Declared]:
    """Reason -> places, as run.json holds them."""
    return {
        reason: {"rows": len(places), "places": list(places[:MOST_PLACES])}
        for reason, places in reasons.items()
    }


def by_reason(dropped: Iterable[Dropped]) -> dict[str, list[str]]:
    """Reason -> where its rows are, the most frequent reason first."""
    found: dict[str, list[str]] = {}
    for bad in dropped:
        place = f"{bad.where} ({bad.detail})" if bad.detail else bad.where
        found.setdefault(bad.reason, []).append(place)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def doubtful(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Rows that are trained on and that a person should know of: reason -> where they are."""
    said = {_said(group) for group in groups}
    seen = set()
    found: dict[str, list[str]] = {REPEATED: [], CONTRADICTED: []}
    for group in groups:
        content = _said(group)
        if content in seen:
            found[REPEATED].append(group.where)
        seen.add(content)
        if (opposite := _opposite(group)) is not None and _said(opposite) in said:
            found[CONTRADICTED].append(group.where)
    return {reason: places for reason, places in found.items() if places}


def _said(group: Group) -> object:
    """The words of a row, with the verdict on them."""
    return group.prompt, tuple((c.text, c.label) for c in group.completions)


def _opposite(group: Group) -> Group | None:
    """The row that says the opposite; None where there is no such thing."""
    if group.type == "preference":
        return replace(group, completions=group.completions[::-1])
    if group.type == "unpaired":
        (only,) = group.completions
        return replace(group, completions=(replace(only, label=not only.label),))
    return None
