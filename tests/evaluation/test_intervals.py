"""Intervals against what defines them."""

from __future__ import annotations

import math
from statistics import mean, stdev

import pytest

from truing.evaluation.intervals import Z, mean_interval, share_interval, wilson_interval


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (7, 7), (7, 10), (68, 100), (1, 400)])
def test_wilsons_ends_are_where_the_share_is_z_deviations_away(successes, trials):
    found = wilson_interval(successes, trials)
    share = successes / trials
    assert (found.mean, found.n) == (share, trials)
    assert -1e-12 < found.low <= share <= found.high < 1 + 1e-12
    for end in (found.low, found.high):
        deviation = math.sqrt(max(end * (1 - end), 0.0) / trials)
        assert abs(share - end) == pytest.approx(Z * deviation, abs=1e-9)


def test_a_mean_is_z_standard_errors_wide_on_both_sides():
    values = [1.0, 4.0, 2.5, 8.0]
    found = mean_interval(values)
    half = 1.959964 * stdev(values) / 2
    assert found.mean == mean(values)
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))
    assert mean_interval([3.0]).low == mean_interval([3.0]).high == 3.0


def test_shares_that_agree_are_not_certain():
    assert share_interval([0.25, 1.0]) == mean_interval([0.25, 1.0])
    for share in (0.0, 0.5, 1.0):
        assert share_interval([share] * 8) == wilson_interval(round(8 * share), 8)
