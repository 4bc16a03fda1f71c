"""The table says what was measured, and nothing else, in all three renderings."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from truing.evaluation import table
from truing.evaluation.summary import Interval, Summary

HEADINGS = [
    "policy",
    "gold reward",
    "gold gain",
    "proxy reward",
    "KL (nats)",
    "length (tokens)",
    "distinct-2",
    "no EOS (%)",
    "model copies",
    "peak memory",
    "wall time",
    "tokens/s",
]


def printed(drawn: Table, width: int) -> str:
    """What a terminal of this width shows."""
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(drawn)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def markdown_rows(summary: Summary) -> list[list[str]]:
    """The cells of the Markdown table."""
    lines = table.policy_markdown(summary).splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def column(summary: Summary, heading: str) -> list[str]:
    """The cells below a heading."""
    grid = table.policy_grid(summary)
    at = [c.heading for c in grid.columns].index(heading)
    return [str(row[at]) for row in grid.rows]


def test_columns(summary: Summary) -> None:
    grid = table.policy_grid(summary)
    assert [c.heading for c in grid.columns] == HEADINGS
    assert all(c.legend.endswith(".") for c in grid.columns)
    assert markdown_rows(summary)[0] == HEADINGS


def test_means_stand_with_their_intervals(summary: Summary) -> None:
    assert column(summary, "gold reward")[2] == "0.538 [0.505, 0.571]"
    assert column(summary, "gold gain")[2] == "+0.222 [+0.186, +0.258]"
    assert column(summary, "proxy reward")[0] == "-0.92 [-1.06, -0.78]"
    assert column(summary, "no EOS (%)")[0] == "38.8"


def test_a_bound_is_never_shown_as_a_kl(summary: Summary) -> None:
    assert column(summary, "KL (nats)")[-1] == "<= 1.20 bound"
    for text in (table.policy_markdown(summary), printed(table.policy_table(summary, 200), 200)):
        assert text.count("1.20") == text.count("<= 1.20") == 1
        assert "bound" in text


def test_a_measured_kl_is_shown_instead_of_the_bound(summary: Summary) -> None:
    summary.policies[-1].kl = Interval(mean=0.9, low=0.8, high=1.0, n=240)
    assert column(summary, "KL (nats)")[-1] == "0.90 [0.80, 1.00]"


def test_not_measured_is_a_dash_and_zero_is_zero(summary: Summary) -> None:
    assert column(summary, "gold gain")[1] == table.DASH
    assert [column(summary, h)[0] for h in HEADINGS[-4:]] == [table.DASH] * 4
    assert column(summary, "KL (nats)")[1] == "0.00 [0.00, 0.00]"


def test_a_column_without_any_number_is_left_out(summary: Summary) -> None:
    for policy in summary.policies:
        policy.gold = policy.gold_gain = None
    headings = [c.heading for c in table.policy_grid(summary).columns]
    assert headings == [h for h in HEADINGS if not h.startswith("gold")]


def test_the_reference_and_the_stage_are_named(summary: Summary) -> None:
    names = column(summary, "policy")
    assert names[1] == "sft reference"
    assert names[4] == "best_of_8 stage best_of_n"


@pytest.mark.parametrize("width", [80, 100, 120, 170, 240])
def test_the_terminal_shows_every_number_whole(summary: Summary, width: int) -> None:
    for drawn, grid in [
        (table.policy_table(summary, width), table.policy_grid(summary)),
        (table.stage_table(summary, width), table.stage_grid(summary)),
    ]:
        text = printed(drawn, width)
        for row in grid.rows:
            for cell in row:
                assert cell.main in text
                assert all(word in text for word in cell.note.split())
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width


def test_a_terminal_too_narrow_for_anything_loses_no_digit(summary: Summary) -> None:
    narrow = "".join(printed(table.policy_table(summary, 30), 30).split())
    assert "…" not in narrow
    assert narrow.count("[") == str(table.policy_grid(summary).rows).count("[") - 1 - len(
        summary.policies
    )


def test_markdown_and_terminal_show_the_same_cells(summary: Summary) -> None:
    grid = table.policy_grid(summary)
    assert markdown_rows(summary)[2:] == [[str(cell) for cell in row] for row in grid.rows]


def test_a_hostile_label_stays_in_its_cell(summary: Summary) -> None:
    summary.policies[0].label = "a|b\n| c |\n<script>[red]x"
    lines = table.policy_markdown(summary).splitlines()
    assert len(lines) == 2 + len(summary.policies)
    assert "a\\|b \\| c \\| &lt;script>[red]x" in lines[2]
    assert "[red]x" in printed(table.policy_table(summary, 200), 200)


def test_no_policies_and_no_stages_still_draw() -> None:
    bare = Summary(name="x", seed=0, created="", machine={}, versions={}, precision="float32")
    assert table.policy_markdown(bare).count("\n") == 2
    printed(table.policy_table(bare), 80)
    printed(table.stage_table(bare), 80)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (table.number(None), "–"),
        (table.number(-0.001), "0.00"),
        (table.number(-0.001, signed=True), "+0.00"),
        (table.number(12345.6, 0), "12,346"),
        (table.reward(0.5), "0.500"),
        (table.percent(0.125), "12.5"),
        (table.percent(None), "–"),
        (table.duration(None), "–"),
        (table.duration(0.04), "0.0 s"),
        (table.duration(9.96), "10 s"),
        (table.duration(99.6), "1.7 min"),
        (table.duration(5970), "1.7 h"),
        (table.memory(None), "–"),
        (table.memory(512 * 2**20), "512 MiB"),
        (table.memory(3 * 2**29), "1.50 GiB"),
        (table.copies(None), "–"),
        (table.copies(10), "10"),
        (table.copies(2.25), "2.25"),
        (table.exact(0.6931471805), "0.69314718"),
    ],
)
def test_formats(written: str, expected: str) -> None:
    assert written == expected


@given(st.floats(-1e9, 1e9), st.integers(0, 6), st.booleans())
def test_a_written_number_reads_back_to_its_digits(value: float, digits: int, signed: bool) -> None:
    text = table.number(value, digits, signed)
    assert abs(float(text.replace(",", "")) - value) <= 0.5 * 10**-digits + 1e-6
    assert not text.startswith("-0.000000"[: digits + 2]) or float(text.replace(",", "")) != 0
    assert text[0] in "+-" or not signed
