"""Rows become groups, and groups become rows again: the field's dataset types (TRL's names).

    preference         chosen, rejected, and prompt unless both hold it (implicit prompt)
    unpaired           prompt, completion, label
    scored             prompt, completions, scores: several answers, each with its score
    stepwise           prompt, completions, labels: the steps of one answer, each right or not
    prompt-completion  prompt, completion, or messages: the last assistant turn is the completion
    prompt-only        prompt

Each comes plain (strings), conversational (lists of {role, content}), or, for pairs, as HH
transcripts ("\\n\\nHuman: ... \\n\\nAssistant: ..."), which become conversations. `finish` ('stop'
or 'length') and `score` may stand beside a completion, `chosen_finish`, ... beside a pair, with
`margin` (by how much chosen is better) and `probability` (that it is better); `finishes` beside
scored completions; `step_separator` ("\\n") beside steps, which are texts and are joined by it. All
other columns stay with the group. Whole texts without a prompt (`text`) are refused: what would
be trained, and after what, is not said. A row that cannot be used is an error or is reported;
which is the caller's choice.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from truing.data.readers import Row
from truing.data.rows import (
    EXTRAS,
    STEP_SEPARATOR,
    TYPE_EXTRAS,
    BadRowError,
    Format,
    Kind,
    Shape,
    read_row,
)
from truing.errors import DataError, suggest
from truing.groups import CHOICE_COLUMNS, Completion, FinishReason, Group, GroupType

BadRows = Literal["error", "drop"]
CORRECT = "correct them, or set data.bad_rows=drop to leave them out"

STANDARD = (
    *("prompt", "completion", "chosen", "rejected", "label", "messages"),
    *("completions", "scores", "labels"),
)
READ = {
    *STANDARD,
    *(prefix + extra for prefix in ("", "chosen_", "rejected_") for extra in EXTRAS),
    *(extra for extras in TYPE_EXTRAS.values() for extra in extras),
}
"""Every column name that has a meaning."""
USUAL_NAMES = {
    "question": "prompt",
    "query": "prompt",
    "instruction": "prompt",
    "answer": "completion",
    "response": "completion",
    "output": "completion",
    "responses": "completions",
    "steps": "completions",
    "rewards": "scores",
    "conversation": "messages",
    "conversations": "messages",
}


class Dropped(NamedTuple):
    """A row that was left out. `reason` is the same for all of its kind, `detail` its own."""

    where: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What the rows were: every row is in `groups` or in `dropped`."""

    groups: list[Group]
    dropped: list[Dropped]
    type: GroupType
    format: Format
    implicit_prompt: bool
    """True when the prompt was found as what chosen and rejected share."""


KINDS = (
    Kind("preference", ("chosen", "rejected")),
    Kind("unpaired", ("prompt", "completion", "label")),
    Kind("scored", ("prompt", "completions", "scores")),
    Kind("stepwise", ("prompt", "completions", "labels")),
    Kind("prompt-completion", ("prompt", "completion")),
    Kind("prompt-completion", ("messages",)),
    Kind("prompt-only", ("prompt",)),
)
"""In order: the first whose columns are there is meant, whatever other columns there are."""


def parse_rows(
    rows: Iterable[Row], *, columns: Mapping[str, str] | None = None, bad_rows: BadRows = "error"
) -> Parsed:
    """Rows as groups of one type and format.

    `columns` maps your column names to the standard ones. Raises DataError when the columns make
    no type or several, when no row is left, and for bad rows unless they are to be dropped.
    """
    rows = _renamed(list(rows), columns or {})
    if not rows:
        raise DataError("there are no rows", remedy="check data.path and data.split")
    found = {name for row in rows for name in _present(row)}
    kind = _kind_of(found)
    if kind is None:
        raise _unknown_columns(rows)
    if kind.type == "scored" and "labels" in found:
        raise DataError(
            "'scores' and 'labels' beside 'completions': several answers, or the steps of one?",
            where=rows[0].where,
            remedy="take labels out of the file for answers, scores for steps",
        )
    if kind.type == "preference" and "prompt" in found:
        kind = kind._replace(needs=("prompt", *kind.needs))
    groups: list[Group] = []
    dropped: list[Dropped] = []
    common: Shape | None = None
    for row in rows:
        _refuse_mixture(row, kind)
        try:
            group, shape = read_row(row, kind)
            common = common or shape
            if shape != common:
                raise BadRowError(f"{shape}, but the first good row is {common}")
            groups.append(group)
        except BadRowError as bad:
            dropped.append(Dropped(row.where, str(bad)))
    settle(dropped, len(rows), bad_rows)
    assert common is not None  # settle lets no data set without a good row pass
    return Parsed(groups, dropped, kind.type, common.format, common.implicit)


def settle(
    dropped: Sequence[Dropped], total: int, bad_rows: BadRows, remedy: str = CORRECT
) -> None:
    """Raises DataError with the count and the first five, unless bad rows may go and some stay."""
    if not dropped or (bad_rows == "drop" and len(dropped) < total):
        return
    lines = [str(bad) for bad in dropped[:5]]
    if len(dropped) > 5:
        lines.append(f"and {len(dropped) - 5:,} more")
    if bad_rows == "drop":
        remedy = "no row is left: check data.path, data.columns and data.max_length"
    what = f"{len(dropped):,} of {total:,} rows cannot be used"
    raise DataError("\n  ".join([what, *lines]), remedy=remedy)


def to_row(group: Group) -> dict[str, Any]:
    """A group as a row that `parse_rows` reads back.

    Its other columns are included, but for names that would be read as something else. Of a pair
    only the two completions are written. Raises DataError for several completions without a
    choice or scores: no row of these types holds them.
    """
    messages = group.prompt.messages
    conversational = messages is not None
    row = {name: value for name, value in group.columns.items() if name not in READ}
    row["prompt"] = group.prompt.text
    if messages is not None:
        row["prompt"] = [{"role": m.role, "content": m.content} for m in messages]
    if group.chosen is not None and group.rejected is not None:
        _write(row, "chosen", "chosen_", group.completions[group.chosen], conversational)
        _write(row, "rejected", "rejected_", group.completions[group.rejected], conversational)
        row |= {name: group.columns[name] for name in CHOICE_COLUMNS if name in group.columns}
    elif group.type == "scored":
        row["completions"] = [_written(c, conversational) for c in group.completions]
        row["scores"] = [c.score for c in group.completions]
        if any(c.finish is not FinishReason.STOP for c in group.completions):
            row["finishes"] = [c.finish.value for c in group.completions]
    elif len(group.completions) == 1:
        _write(row, "completion", "", group.completions[0], conversational)
    elif group.completions:
        raise DataError(
            f"{len(group.completions)} completions and no choice between them",
            where=group.where,
            remedy="set chosen and rejected, score them all, or write one group a completion",
        )
    return row


def _write(
    row: dict[str, Any], name: str, prefix: str, completion: Completion, conversational: bool
) -> None:
    """The columns of one completion; finish and score only where they say something."""
    if completion.steps:
        row |= _written_steps(completion)
    else:
        row[name] = _written(completion, conversational)
    if completion.finish is not FinishReason.STOP:
        row[f"{prefix}finish"] = completion.finish.value
    if completion.score is not None:
        row[f"{prefix}score"] = completion.score
    if completion.label is not None:
        row["label"] = completion.label


def _written(completion: Completion, conversational: bool) -> Any:
    text = completion.text
    return [{"role": "assistant", "content": text}] if conversational else text


def _written_steps(completion: Completion) -> dict[str, Any]:
    """The columns of a completion in steps; the separator only where it is another than usual."""
    text, steps = completion.text, completion.steps
    row: dict[str, Any] = {
        "completions": [text[step.start : step.end] for step in steps],
        "labels": [step.label for step in steps],
    }
    separator = text[steps[0].end : steps[1].start] if len(steps) > 1 else STEP_SEPARATOR
    return row if separator == STEP_SEPARATOR else {**row, "step_separator": separator}


# Which columns there are


def _present(row: Row) -> set[str]:
    """Columns with a value: parquet fills what is missing with null."""
    return {name for name, value in row.values.items() if value is not None}


def _kind_of(found: set[str]) -> Kind | None:
    return next((kind for kind in KINDS if found.issuperset(kind.needs)), None)


def _renamed(rows: list[Row], columns: Mapping[str, str]) -> list[Row]:
    """The rows under the standard names. Raises DataError for names that are not there."""
    found = {name for row in rows for name in row.values}
    for mine, standard in columns.items():
        if standard not in READ:
            raise DataError(
                f"columns: '{standard}' is no standard name", remedy=suggest(standard, READ)
            )
        if mine not in found:
            raise DataError(f"columns: there is no '{mine}'", remedy=suggest(mine, found))
    taken = [name for name in columns.values() if name in found and name not in columns]
    if taken or len(set(columns.values())) < len(columns):
        raise DataError(
            f"columns: two columns would be called '{(taken or list(columns.values()))[0]}'",
            remedy="map one column to each name, and take the other out of the file",
        )
    if not columns:
        return rows
    return [
        Row({columns.get(name, name): value for name, value in row.values.items()}, row.where)
        for row in rows
    ]


def _unknown_columns(rows: list[Row]) -> DataError:
    names = sorted({name for row in rows for name in row.values})
    needed = " | ".join(", ".join(kind.needs) for kind in KINDS)
    foreign = [name for name in names if name not in STANDARD]
    meant = {name: USUAL_NAMES.get(name) or _nearest(name) for name in foreign}
    pairs = ", ".join(f"{name}: {standard}" for name, standard in meant.items() if standard)
    remedy = f"name yours, for example columns: {{{pairs or 'my_name: prompt'}}}"
    if "text" in names:
        remedy += "; 'text' alone does not say what is prompt and what is completion"
    return DataError(
        f"columns {', '.join(names) or '(none)'}, but needed is one of: {needed}",
        where=rows[0].where,
        remedy=remedy,
    )


def _nearest(name: str) -> str | None:
    return next(iter(difflib.get_close_matches(name, STANDARD, n=1, cutoff=0.75)), None)


def _refuse_mixture(row: Row, kind: Kind) -> None:
    """Raises DataError for a row that is whole, but of another type than the data set."""
    own = _kind_of(_present(row))
    if own is not None and not set(own.needs) <= set(kind.needs):
        raise DataError(
            f"a {own.type} row ({', '.join(own.needs)}) in {kind.type} data "
            f"({', '.join(kind.needs)})",
            where=row.where,
            remedy="keep each type in a file of its own",
        )
