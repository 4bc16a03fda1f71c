"""Medians, ranges and ratios of paired runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Run(NamedTuple):
    """One timed run."""

    seconds: float
    units: int
    """Pairs, rows or completions."""
    tokens: int
    peak: int
    """Bytes, since loading."""

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.units / self.seconds


class Spread(NamedTuple):
    """Median and range."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}-{self.high:.3g})"


def spread(values: Sequence[float]) -> Spread:
    """Median and range of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rounds of ours and theirs in turn."""

    ours: str
    theirs: str
    rounds: tuple[tuple[Run, Run], ...]
    load_peaks: tuple[int, int]
    """Bytes while loading, ours and theirs: the checkpoint as it was read is in it."""

    def rates(self, side: int) -> Spread:
        """Units a second of one side (0 ours, 1 theirs)."""
        return spread([both[side].rate for both in self.rounds])

    def tokens(self, side: int) -> Spread:
        """Tokens a second of one side."""
        return spread([both[side].tokens / both[side].seconds for both in self.rounds])

    def seconds(self, side: int) -> float:
        """Median seconds of a run."""
        return statistics.median(both[side].seconds for both in self.rounds)

    def ratios(self, unit: str = "units") -> Spread:
        """How many times faster ours was, round by round, in units or in tokens."""
        if unit == "tokens":
            return spread([(a.tokens / a.seconds) / (b.tokens / b.seconds) for a, b in self.rounds])
        return spread([a.rate / b.rate for a, b in self.rounds])

    def peak(self, side: int) -> int:
        """Bytes at the highest moment of all runs, loading left out."""
        return max(both[side].peak for both in self.rounds)

    def dump(self) -> dict[str, Any]:
        """Everything measured, and what follows from it."""
        sides = {
            name: {
                "label": label,
                "units_per_second": self.rates(side)._asdict(),
                "tokens_per_second": self.tokens(side)._asdict(),
                "run_peak_bytes": self.peak(side),
                "load_peak_bytes": self.load_peaks[side],
                "runs": [both[side]._asdict() for both in self.rounds],
            }
            for side, (name, label) in enumerate((("ours", self.ours), ("theirs", self.theirs)))
        }
        return {
            **sides,
            "ratio": self.ratios()._asdict(),
            "token_ratio": self.ratios("tokens")._asdict(),
            "memory_ratio": self.peak(0) / self.peak(1),
        }


def fastest(runs: dict[Any, Run]) -> Any:
    """The key of the run with most units a second."""
    return max(runs, key=lambda key: runs[key].rate)
