"""The numbers of a run as text: terminal, Markdown and HTML show the same cells. No torch.

A `Grid` is a table before anyone drew it. Every number is written by one function of this module,
so no two places can disagree on its digits, and what was not measured is a dash everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from rich import box
from rich.table import Table
from rich.text import Text

from truing.evaluation.summary import Interval, PolicyResult, StageResult, Summary

DASH = "–"
"""What a number that was not measured looks like."""


class Cell(NamedTuple):
    """One number as text, and what stands beside it: its interval, or what kind it is."""

    main: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.main} {self.note}".rstrip()


NOT_MEASURED = Cell(DASH)

GAP = 2
"""Spaces between two columns in the terminal."""


def number(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """Fixed digits, thousands grouped; a gain carries its sign; zero has none of its own."""
    if value is None:
        return DASH
    return format(value, f"{'+' if signed else ''}z,.{digits}f")


def interval(value: Interval | None, digits: int = 2, signed: bool = False) -> Cell:
    """mean [low, high]."""
    if value is None:
        return NOT_MEASURED
    mean, low, high = (number(x, digits, signed) for x in (value.mean, value.low, value.high))
    return Cell(mean, f"[{low}, {high}]")


def reward(value: float | None) -> str:
    """A score of one completion, with the digits of the tables."""
    return number(value, 3)


def exact(value: float) -> str:
    """A number that is compared with a known one: eight significant digits."""
    return f"{value:.8g}"


def divergence(policy: PolicyResult) -> Cell:
    """The KL where it was measured; a bound says that it is one."""
    if policy.kl is None and policy.kl_bound is not None:
        return Cell(f"<= {number(policy.kl_bound)}", "bound")
    return interval(policy.kl)


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a number of percent, without the sign."""
    return DASH if share is None else number(100 * share, digits)


def duration(seconds: float | None) -> str:
    """9.5 s, 88 s, 6.9 min, 1.8 h."""
    if seconds is None:
        return DASH
    if seconds < 99.5:
        return f"{seconds:.{1 if seconds < 9.95 else 0}f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 99.5 else f"{minutes / 60:.1f} h"


def memory(size: int | None) -> str:
    """512 MiB, 1.94 GiB."""
    if size is None:
        return DASH
    mebibytes = size / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes < 1000 else f"{mebibytes / 1024:.2f} GiB"


def copies(value: float | None) -> str:
    """Whole copies without decimals, parts with them."""
    return DASH if value is None else f"{value:.2f}".rstrip("0").rstrip(".")


Row = TypeVar("Row", PolicyResult, StageResult)


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column: its heading, what it means and how it is measured, and its cells."""

    heading: str
    legend: str
    cell: Callable[[Row], Cell]
    text: bool = False
    """Words, not numbers: written from the left."""


@dataclass(frozen=True)
class Grid:
    """A table, not yet drawn."""

    columns: list[Column[PolicyResult]] | list[Column[StageResult]]
    rows: list[list[Cell]]


COST = (
    "Whole copies of the model in memory; adapters and heads are not copies.",
    "Highest resident memory of the process meanwhile.",
    "Wall-clock time of the stage (Best-of-N: of drawing and scoring).",
    "Tokens the stage computed or drew, divided by its time.",
)
LIMIT = (
    "Percent: how fast its loop was, where 100 would be the least possible operations at the rate "
    "of this machine's matrix products."
)


def policy_grid(summary: Summary) -> Grid:
    """One row a policy. A column that no policy has a number for is left out."""
    reference = summary.reference or "the reference"

    def name(p: PolicyResult) -> Cell:
        of_stage = f"stage {p.stage}" if p.stage != p.label else ""
        role = "reference" if p.label == summary.reference else ""
        return Cell(p.label, ", ".join(filter(None, [of_stage, role])))

    columns: list[Column[PolicyResult]] = [
        Column("policy", "Who wrote the completions.", name, text=True),
        Column(
            "gold reward",
            "Mean score by the annotator's own reward, which no training stage saw.",
            lambda p: interval(p.gold, 3),
        ),
        Column(
            "gold gain",
            f"Gold reward minus that of {reference} on the same prompts. "
            "Where the interval excludes 0, the policy differs.",
            lambda p: interval(p.gold_gain, 3, signed=True),
        ),
        Column(
            "proxy reward",
            "Mean score by the reward model. It can rise without the text getting any better.",
            lambda p: interval(p.proxy),
        ),
        Column(
            "KL (nats)",
            f"How far whole completions moved from {reference}, estimated on the policy's own "
            "samples. '<=' is an upper bound, not an estimate: Best-of-N has no log-probs.",
            divergence,
        ),
        Column(
            "length (tokens)",
            "Mean completion length, stop token included.",
            lambda p: interval(p.length, 1),
        ),
        Column(
            "distinct-2",
            "Different word pairs / all word pairs: 1 is all different, near 0 is repetition.",
            lambda p: Cell(number(p.distinct_2)),
        ),
        Column(
            "no EOS (%)",
            "Completions that hit the token limit before they ended.",
            lambda p: Cell(percent(p.no_eos)),
        ),
        Column("model copies", COST[0], lambda p: Cell(copies(p.model_copies))),
        Column("peak memory", COST[1], lambda p: Cell(memory(p.peak_memory_bytes))),
        Column("wall time", COST[2], lambda p: Cell(duration(p.wall_seconds))),
        Column("tokens/s", COST[3], lambda p: Cell(number(p.tokens_per_second, 0))),
    ]
    kept = [c for c in columns if any(c.cell(p) != NOT_MEASURED for p in summary.policies)]
    return Grid(kept, [[c.cell(p) for c in kept] for p in summary.policies])


def stage_grid(summary: Summary) -> Grid:
    """One row a stage: what it cost."""
    columns: list[Column[StageResult]] = [
        Column("stage", "Its name in the recipe.", lambda s: Cell(s.name), text=True),
        Column("method", "What it did.", lambda s: Cell(s.method), text=True),
        Column("steps", "Optimizer updates.", lambda s: Cell(number(s.steps, 0))),
        Column("tokens", "Tokens computed or drawn.", lambda s: Cell(number(s.tokens, 0))),
        Column("wall time", COST[2], lambda s: Cell(duration(s.wall_seconds))),
        Column("tokens/s", f"{COST[3]} {LIMIT}", _stage_speed),
        Column("model copies", COST[0], lambda s: Cell(copies(s.model_copies))),
        Column("peak memory", COST[1], lambda s: Cell(memory(s.peak_memory_bytes))),
    ]
    return Grid(columns, [[c.cell(s) for c in columns] for s in summary.stages])


def _stage_speed(stage: StageResult) -> Cell:
    """Tokens a second; of a training stage also how near its loop came to the limit."""
    fraction = stage.fraction_of_arithmetic_limit
    note = "" if fraction is None else f"{percent(fraction, 0)} %"
    return Cell(number(stage.tokens_per_second, 0), note)


def policy_table(summary: Summary, width: int = 80) -> Table:
    """The table a run ends with, for a terminal of `width`; policies are columns if need be."""
    return _draw(policy_grid(summary), width)


def stage_table(summary: Summary, width: int = 80) -> Table:
    """What every stage cost, for a terminal of `width`."""
    return _draw(stage_grid(summary), width)


def policy_markdown(summary: Summary) -> str:
    """The policy table in Markdown."""
    grid = policy_grid(summary)
    head = [column.heading for column in grid.columns]
    rule = [":---" if column.text else "---:" for column in grid.columns]
    body = [[_markdown(str(cell)) for cell in row] for row in grid.rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, rule, *body])


def _markdown(text: str) -> str:
    """Text that stays in its cell: a pipe would end it, a newline the row, `<a` open a tag."""
    flat = " ".join(text.split()).replace("|", "\\|")
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", flat)


def _draw(grid: Grid, width: int) -> Table:
    """A rich table, notes dim and below their number; on its side where that fits better.

    A dozen columns are too many for most terminals. A dozen rows are not.
    """
    upright = [[Cell(column.heading) for column in grid.columns], *grid.rows]
    sideways = [list(line) for line in zip(*upright, strict=True)]
    fits = [
        (lines, _widths(lines, wrap)) for wrap in (False, True) for lines in (upright, sideways)
    ]
    small = min(fits, key=lambda fit: sum(fit[1]))
    lines, widths = next((fit for fit in fits if sum(fit[1]) <= width), small)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, head in enumerate(lines[0]):
        words = i == 0 or (lines is upright and grid.columns[i].text)
        justify: Literal["left", "right"] = "left" if words else "right"
        table.add_column(_stacked(head), justify=justify, width=widths[i] - GAP, overflow="fold")
    for line in lines[1:]:
        table.add_row(*map(_stacked, line))
    return table


def _widths(lines: list[list[Cell]], wrap: bool) -> list[int]:
    """Characters of each column, its gap included. With `wrap`, headings and notes break between
    words; numbers never do."""
    widths = []
    for head, *body in zip(*lines, strict=True):
        loose = [head.main, *(cell.note for cell in (head, *body))]
        pieces = [piece for text in loose for piece in (text.split() if wrap else [text])]
        widths.append(GAP + max(map(len, [*pieces, *(cell.main for cell in body)])))
    return widths


def _stacked(cell: Cell) -> Text:
    """Number over note."""
    note = Text(f"\n{cell.note}", style="dim") if cell.note else Text("")
    return Text(cell.main).append_text(note)
