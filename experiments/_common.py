"""What every experiment shares: its command line, its file of results, means over seeds."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from bench import machine

from truing.rundir import write_text

RESULTS = Path(__file__).resolve().parent / "results"
Found = dict[str, Any]


def say(line: str) -> None:
    """A line of progress, beside the table."""
    print(line, file=sys.stderr, flush=True)


def over_seeds(values: Iterable[float]) -> dict[str, Any]:
    """Mean over seeds and its standard error (None with one seed); the values stay with them."""
    found = [round(float(value), 10) for value in values]
    error = stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None
    return {"mean": fmean(found), "se": error, "values": found}


def gathered(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Each number of some runs that differ in their seed, over those seeds."""
    return {name: over_seeds(run[name] for run in runs) for name in runs[0]}


def shown(cell: Mapping[str, Any], digits: int = 2) -> str:
    """0.53 ± 0.02: a mean and its standard error over seeds, if there are several."""
    mean = f"{cell['mean']:.{digits}f}"
    return mean if cell["se"] is None else f"{mean} ± {cell['se']:.{digits}f}"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(headings) + " |", "|---" + "|---:" * (len(headings) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def main(
    name: str,
    sizes: Mapping[str, Callable[[int], Found]],
    table: Callable[[Found], str],
    argv: Sequence[str] | None = None,
) -> int:
    """Run one experiment, write its JSON, print its table."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{name}")
    parser.add_argument("--size", choices=[*sizes], default=next(iter(sizes)))
    parser.add_argument("--seeds", type=int, default=3, help="how often, each with its own luck")
    parser.add_argument("--json", help="default: experiments/results/NAME.SIZE.json")
    asked = parser.parse_args(argv)
    if asked.size == "tiny":
        torch.set_num_threads(1)  # tables are too small to share
    started = time.monotonic()
    found = sizes[asked.size](asked.seeds)
    whole = {
        "experiment": name,
        "size": asked.size,
        "seeds": asked.seeds,
        "seconds": round(time.monotonic() - started, 1),
        "machine": machine.describe("cpu"),
        "found": found,
    }
    path = Path(asked.json) if asked.json else RESULTS / f"{name}.{asked.size}.json"
    write_text(path, json.dumps(whole, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    print(table(found))
    return 0
