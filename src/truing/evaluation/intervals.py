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


def share_interval(shares: Sequence[float]) -> Interval:
    """The mean of independent shares. Where none differs it is Wilson's interval: shares that
    agree by chance do not make their mean certain."""
    if min(shares) < max(shares):
        return mean_interval(shares)
    return wilson_interval(shares[0] * len(shares), len(shares))


def wilson_interval(successes: float, trials: int) -> Interval:
    """A share and its Wilson score interval, which stays inside [0, 1] (Wilson 1927)."""
    share = successes / trials
    centre = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    spread = math.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    half = Z * spread / (1 + Z**2 / trials)
    return Interval(mean=share, low=centre - half, high=centre + half, n=trials)
