"""What a comparison found, as tables for people and Markdown. Reads the JSON, measures nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

UNITS = {
    "dpo": "pairs",
    "reward": "pairs",
    "sft": "rows",
    "sample": "completions",
    "grpo": "completions",
}

Found = Mapping[str, Any]


def say(line: str) -> None:
    """A line of progress, beside the tables."""
    print(line, file=sys.stderr, flush=True)


def machine_line(machine: Found) -> str:
    """One line: where, when, with what."""
    packages = ", ".join(f"{name} {v}" for name, v in machine["packages"].items() if v)
    flags = " ".join(machine["flags"])
    where = machine["gpu"] or f"{machine['cpu']} ({flags}), {machine['cores']} cores"
    return (
        f"{machine['date']}, {where}, {machine['memory_gib']} GiB, {packages}, "
        f"commit {machine['commit']}"
    )


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(headings) + " |", "|---" + "|---:" * (len(headings) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def comparison_table(result: Found) -> str:
    """Ours against the peer: one row for each thing that was paired."""
    unit = UNITS[result["work"]]
    headings = [
        "ours / peer",
        f"{unit}/s ours",
        f"{unit}/s peer",
        "times faster",
        "tokens/s ours",
        "tokens/s peer",
        "peak GiB ours",
        "peak GiB peer",
        "of the limit",
    ]
    return markdown(headings, [_row(pair) for pair in result["pairs"]])


def _row(pair: Found) -> list[str]:
    ours, theirs = pair["ours"], pair["theirs"]
    return [
        f"{pair['name']}: {ours['label']} / {theirs['label']}",
        _spread(ours["units_per_second"]),
        _spread(theirs["units_per_second"]),
        _spread(pair["ratio"]),
        f"{ours['tokens_per_second']['median']:.0f}",
        f"{theirs['tokens_per_second']['median']:.0f}",
        _gib(ours["run_peak_bytes"]),
        _gib(theirs["run_peak_bytes"]),
        f"{pair['fraction_of_limit']:.0%}",
    ]


def _spread(found: Found) -> str:
    return f"{found['median']:.3g} ({found['low']:.3g}-{found['high']:.3g})"


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f}"


def screening_table(result: Found) -> str:
    """Every candidate of the peer that was tried once."""
    unit = UNITS[result["work"]]
    rows = [
        [label, f"{found['rate']:.3g}", _gib(found["peak"])]
        for label, found in sorted(result["tried"].items(), key=lambda item: -item[1]["rate"])
    ]
    return markdown(["tried once", f"{unit}/s", "peak GiB"], rows)


def split_table(result: Found) -> str:
    """Where our time goes, in percent of a run."""
    pairs = [pair for pair in result["pairs"] if pair["parts"]]
    names = list(pairs[0]["parts"]["split"])
    rows = []
    for name in names:
        shares = [
            p["parts"]["split"][name] / sum(p["parts"]["split"].values()) * 100 for p in pairs
        ]
        rows.append([name, *(f"{share:.1f}" for share in shares)])
    return markdown(["% of a profiled run", *(pair["name"] for pair in pairs)], rows)


def whole(result: Found) -> str:
    """All tables of one work."""
    left_out = ", ".join(f"{count:,} {why}" for why, count in result["left_out"].items())
    said = [
        f"{result['work']}: {result['rows']} rows a run in steps of {result['batch']}, "
        f"{result['model']}, {result['device']}; rows left out: {left_out}",
        machine_line(result["machine"]),
        comparison_table(result),
        screening_table(result),
        split_table(result),
    ]
    return "\n\n".join(said)


def worth_table(result: Found) -> str:
    """The ladder: how many times slower without each technique."""
    rows = [
        [name, _spread(found["slower"]), f"{found['memory']:.2f}"]
        for name, found in result["without"].items()
    ]
    return markdown(["without", "times slower", "times the peak"], rows)


def limits_table(result: Found) -> str:
    """The three limits of limits.py."""
    rows = [
        [name, f"{limit['value']:.4g}", f"{limit['limit']:.4g}", "yes" if limit["kept"] else "NO"]
        for name, limit in result["limits"].items()
    ]
    return markdown(["limit", "measured", "at most", "kept"], rows)
