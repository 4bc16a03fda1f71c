"""Every number with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

from truing.evaluation.summary import Interval

Z = NormalDist().inv_cdf(0.975)


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean ± z · s/√n of independent values; with one value the interval is that value."""
    mean = fmean(values)
    half = Z * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Interval(mean=mean, low=mean - half, high=mean + half, n=len(values))


def wilson_interval(successes: int, trials: int) -> Interval:
    """A share and its Wilson score interval, which stays inside [0, 1] (Wilson 1927)."""
    share = successes / trials
    centre = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    spread = math.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    half = Z * spread / (1 + Z**2 / trials)
    return Interval(mean=share, low=centre - half, high=centre + half, n=trials)
