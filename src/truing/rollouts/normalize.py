"""Scores on a scale that advantages can rely on: fixed by the reference, or following the run.

C completions
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from truing.errors import NumericsError

Normalization = Literal["reference", "running", "running_scale", "none"]
SMALLEST_DEVIATION = 1e-6


@dataclass(slots=True)
class ScoreNormalizer:
    """(score − mean) / deviation, with moments of the first rollout or of all so far.

    reference: the first rollout's, which the reference itself drew; then fixed. Source: Ziegler et
    al. 2019 (arXiv 1909.08593), section 2.2. running: of every score so far, this rollout's
    included. running_scale: the same deviation, the mean stays (TRL's `use_score_scaling` without
    `use_score_norm`). none: as the reward gave them. Deviations are Bessel's.
    """

    kind: Normalization
    mean: float = 0.0
    deviation: float = 1.0
    count: int = 0
    """Scores the moments are of; 0 before the first rollout."""
    squares: float = 0.0
    """Σ (score − mean)² of those scores."""

    def fit(self, whole_C: Tensor) -> None:
        """Take in scores as they were drawn; with `reference` only the first ones count.

        Raises NumericsError for a constant reward.
        """
        if self.kind == "none" or (self.kind == "reference" and self.count):
            return
        first = not self.count
        self._add(whole_C.double())
        self.deviation = (self.squares / max(self.count - 1, 1)) ** 0.5
        if first and not self.deviation > SMALLEST_DEVIATION:
            raise NumericsError(
                "the reward gives every completion of the first rollout the same score "
                f"({self.mean:.4g})",
                where=f"score_normalization: {self.kind}",
                remedy="check the reward: a constant one teaches nothing",
            )

    def _add(self, whole_C: Tensor) -> None:
        """Join the moments of two samples (Chan, Golub and LeVeque 1979)."""
        fresh, mean = whole_C.numel(), float(whole_C.mean())
        total, gap = self.count + fresh, mean - self.mean
        self.squares += float((whole_C - mean).square().sum())
        self.squares += gap**2 * self.count * fresh / total
        self.mean += gap * fresh / total
        self.count = total

    @property
    def shift(self) -> float:
        """What is subtracted from a score."""
        return 0.0 if self.kind in ("running_scale", "none") else self.mean

    def apply(self, score_C: Tensor) -> Tensor:
        """Scores of this reward on the scale, in any shape."""
        return score_C if self.kind == "none" else (score_C - self.shift) / self.deviation
