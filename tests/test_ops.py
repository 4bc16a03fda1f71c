"""The pure functions against definitions and published vectors (algorithm sheet 0.3, 1.6, 5.2)."""

import math
import statistics
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truing import ops

sane = st.floats(-50, 50, allow_nan=False, width=32)
lengths_of = st.lists(st.integers(0, 5), min_size=1, max_size=6)


def t(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


@settings(deadline=None)
@given(lengths_of, st.data())
def test_segment_sum_adds_each_segment_in_any_order(lengths, data):
    owners = data.draw(st.permutations([c for c, n in enumerate(lengths) for _ in range(n)]))
    values = data.draw(st.lists(sane, min_size=len(owners), max_size=len(owners)))
    segment_N = torch.tensor(owners, dtype=torch.long)
    seen = ops.segment_sum(t(values), segment_N, len(lengths)).tolist()
    for c in range(len(lengths)):
        expected = math.fsum(v for v, owner in zip(values, owners, strict=True) if owner == c)
        assert seen[c] == pytest.approx(expected, abs=1e-9)


def test_segment_sum_gives_each_token_the_gradient_of_its_segment():
    values = t([1.0, 2.0, 3.0]).requires_grad_()
    (ops.segment_sum(values, torch.tensor([1, 0, 1]), 3) @ t([5.0, 7.0, 11.0])).backward()
    assert values.grad.tolist() == [7, 5, 7]


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (ops.kl_k1, [-1, 14, 29]),
        (ops.kl_k2, [0.5, 98, 420.5]),
        (ops.kl_k3, [0.718282, 13 + math.exp(-14), 28]),
    ],
)
def test_kl_of_the_nemo_vector(estimator, expected):
    seen = estimator(t([-1.0, -1.0, -1.0]), t([0.0, -15.0, -30.0]))
    assert seen.tolist() == pytest.approx(expected, abs=1e-6)


def test_k3_of_the_other_nemo_vector():
    seen = ops.kl_k3(t([0.0, -1.0, -2.0]), t([-1.0, -1.0, -1.0]))
    assert seen.tolist() == pytest.approx([math.exp(-1), 0, math.e - 2], abs=1e-12)


@settings(deadline=None)
@given(sane, sane)
def test_k3_is_never_negative_in_float32(ours, theirs):
    assert ops.kl_k3(t([ours], torch.float32), t([theirs], torch.float32)).item() >= 0


@pytest.mark.parametrize("drift", [1e-2, 1e-3, -1e-3, 3e-4])
def test_k3_keeps_its_digits_near_zero(drift):
    series = drift**2 / 2 - drift**3 / 6 + drift**4 / 24
    seen = ops.kl_k3(t([drift]), t([0.0])).item()
    assert seen == pytest.approx(series, rel=1e-6)
    single = ops.kl_k3(t([drift], torch.float32), t([0.0], torch.float32)).item()
    assert single == pytest.approx(series, rel=2e-3 if abs(drift) < 1e-2 else 1e-4, abs=1e-10)


@pytest.mark.parametrize("estimator", [ops.kl_k1, ops.kl_k2, ops.kl_k3])
def test_kl_and_its_slope_stay_finite_far_from_the_reference(estimator):
    logps = t([-1e4, 1e4, -1e4], torch.float32).requires_grad_()
    seen = estimator(logps, t([1e4, -1e4, -1e4], torch.float32))
    seen.sum().backward()
    assert seen.isfinite().all()
    assert logps.grad.isfinite().all()
    assert seen[2] == 0


@settings(deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=30).filter(lambda x: len({*x}) > 1))
def test_whitening_removes_the_mean_and_scales_by_bessels_deviation(values):
    seen = ops.whiten(t(values)).tolist()
    assert statistics.fmean(seen) == pytest.approx(0, abs=1e-9)
    assert statistics.stdev(seen) == pytest.approx(1, abs=1e-6)
    assert sorted(range(len(values)), key=values.__getitem__) == sorted(
        range(len(values)), key=lambda i: (seen[i], i)
    )


def test_whitening_of_a_known_vector():
    assert ops.whiten(t([1.0, 2.0, 3.0])).tolist() == pytest.approx([-1, 0, 1], abs=1e-8)
    assert ops.whiten(t([1.0, 2.0, 3.0]), 3.0).tolist() == pytest.approx([-0.5, 0, 0.5])


@pytest.mark.parametrize("values", [[7.0], [3.0, 3.0, 3.0]])
def test_whitening_what_does_not_vary_gives_zero(values):
    assert ops.whiten(t(values)).tolist() == [0.0] * len(values)


@settings(deadline=None)
@given(lengths_of, st.floats(0, 1), st.data())
def test_discounted_deltas_are_the_double_sum(lengths, decay, data):
    deltas = data.draw(st.lists(sane, min_size=sum(lengths), max_size=sum(lengths)))
    expected, start = [], 0
    for length in lengths:
        own = deltas[start : start + length]
        expected += [
            math.fsum(decay ** (u - i) * own[u] for u in range(i, length)) for i in range(length)
        ]
        start += length
    seen = ops.discounted_deltas(t(deltas), lengths, decay).tolist()
    assert seen == pytest.approx(expected, abs=1e-9)


def test_discounted_deltas_leave_their_input_alone():
    deltas = t([1.0, 2.0, 3.0])
    assert ops.discounted_deltas(deltas, [3], 0.5).tolist() == [2.75, 3.5, 3.0]
    assert deltas.tolist() == [1, 2, 3]


@pytest.mark.parametrize("x", [-1e-12, -1e-6, -0.1, -0.6931, -0.6932, -1.0, -5.0, -40.0])
def test_log1mexp_against_sixty_digits(x):
    with localcontext(prec=60):
        expected = float((1 - Decimal(x).exp()).ln())
    assert ops.log1mexp(t([x])).item() == pytest.approx(expected, rel=1e-12)


def test_log1mexp_has_a_finite_slope_at_both_ends():
    x = t([-1e-8, -1.0, -300.0], torch.float32).requires_grad_()
    ops.log1mexp(x).sum().backward()
    assert x.grad.tolist() == pytest.approx([-1e8, -1 / (math.e - 1), 0], rel=1e-4)


@pytest.mark.parametrize(
    ("predictions", "explained"),
    [
        ([1, 2, 6], 1.0),
        ([3, 3, 3], 0.0),
        ([101, 102, 106], 1.0),
        ([-1, -2, -6], -3.0),
        ([1, 2, 3], 1 - 3.0 / 7.0),
    ],
)
def test_explained_variance(predictions, explained):
    seen = ops.explained_variance(t(predictions), t([1, 2, 6])).item()
    assert seen == pytest.approx(explained, abs=1e-12)


def test_explained_variance_of_constant_targets_is_undefined():
    assert ops.explained_variance(t([1.0, 2.0]), t([3.0, 3.0])).isnan()


def test_k3_never_pulls_away_from_the_reference():
    """Descending it must raise a log-prob that lies below the reference's, and lower one above."""
    for drift in (-1e4, -25.0, -3.0, 3.0, 25.0, 1e4):
        logp = torch.tensor([drift], requires_grad=True)
        ops.kl_k3(logp, torch.zeros(1)).sum().backward()
        assert logp.grad.isfinite().all()
        assert float(logp.grad) * drift >= 0, drift
