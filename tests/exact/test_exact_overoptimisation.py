"""Gao's forms, their peaks on a grid, and the fit (O43)."""

import math

import pytest
import torch

from truing import exact
from truing.errors import UsageError

BON, RL = (1.2, 0.3), (0.8, 0.5)
GRID = torch.linspace(1e-4, 12, 1_200_001, dtype=torch.float64)
DISTANCES = torch.linspace(0.05, 4, 25, dtype=torch.float64)
FORMS = {"bon": (exact.bon_gain, exact.fit_bon, BON), "rl": (exact.rl_gain, exact.fit_rl, RL)}
EACH = pytest.mark.parametrize(("gain", "fit", "truth"), FORMS.values(), ids=FORMS)


def test_o43_the_forms_are_the_papers():
    for d in (0.5, 1.0, 2.0):
        at = torch.tensor([d]).double()
        assert exact.bon_gain(at, *BON).item() == pytest.approx(d * (1.2 - 0.3 * d))
        assert exact.rl_gain(at, *RL).item() == pytest.approx(d * (0.8 - 0.5 * math.log(d)))


@pytest.mark.parametrize(
    ("gain", "peak", "parameters"),
    [(exact.bon_gain, exact.bon_peak, BON), (exact.rl_gain, exact.rl_peak, RL)],
)
def test_o43_peaks_and_zeros_are_where_a_grid_finds_them(gain, peak, parameters):
    curve, found = gain(GRID, *parameters), peak(*parameters)
    top = int(curve.argmax())
    assert found.distance == pytest.approx(GRID[top].item(), abs=1e-3)
    assert found.gain == pytest.approx(curve[top].item(), abs=1e-8)
    last_positive = int((curve > 0).nonzero().max())
    assert found.zero == pytest.approx(GRID[last_positive].item(), abs=1e-4)


def test_o43_at_the_reference_the_rl_form_is_infinitely_steep_and_the_other_is_not():
    near = torch.tensor([1e-3, 1e-6, 1e-12], dtype=torch.float64)
    steep = exact.rl_gain(near, *RL) / near
    assert (steep.diff() > 3).all()
    assert (exact.bon_gain(near, *BON) / near).tolist() == pytest.approx([1.2] * 3, abs=1e-3)
    nowhere = torch.zeros(1, dtype=torch.float64)
    assert exact.rl_gain(nowhere, *RL) == exact.bon_gain(nowhere, *BON) == 0


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (1.0, -0.1), (-1.0, -0.1), (1.0, 1e-4)])
def test_a_curve_that_does_not_turn_has_no_peak(alpha, beta):
    assert exact.rl_peak(alpha, beta) is None
    assert (exact.bon_peak(alpha, beta) is None) == (beta <= 0)
    assert exact.bon_peak(-1.0, 0.5) is None


@EACH
def test_a_clean_curve_is_fitted_exactly(gain, fit, truth):
    found = fit(DISTANCES, gain(DISTANCES, *truth))
    assert (found.alpha, found.beta) == pytest.approx(truth)
    assert found.r2 == pytest.approx(1)
    assert found.points == (25 if gain is exact.bon_gain else 23)


@EACH
def test_a_noisy_curve_is_fitted_with_the_smallest_residual(gain, fit, truth):
    gains = gain(DISTANCES, *truth) + 0.1 * (7 * DISTANCES).sin()
    closest = 0.0 if gain is exact.bon_gain else 0.3
    found, used = fit(DISTANCES, gains), DISTANCES.ge(closest)

    def residual(alpha, beta):
        missed = gains[used] - gain(DISTANCES[used], alpha, beta)
        return sum(x * x for x in missed.tolist())

    best = residual(found.alpha, found.beta)
    for step in (1e-3, -1e-3):
        assert residual(found.alpha + step, found.beta) > best
        assert residual(found.alpha, found.beta + step) > best
    mean = sum(gains[used].tolist()) / int(used.sum())
    spread = sum((x - mean) ** 2 for x in gains[used].tolist())
    assert 0.5 < found.r2 < 0.999
    assert found.r2 == pytest.approx(1 - best / spread)


def test_o43_points_close_to_the_reference_are_left_out_of_the_rl_fit_only():
    close_by = DISTANCES < 0.3
    assert close_by.any()
    spoilt = exact.rl_gain(DISTANCES, *RL) + 5.0 * close_by
    found = exact.fit_rl(DISTANCES, spoilt)
    assert (found.alpha, found.beta) == pytest.approx(RL)
    spoilt = exact.bon_gain(DISTANCES, *BON) + 5.0 * close_by
    assert exact.fit_bon(DISTANCES, spoilt).alpha > BON[0] + 0.1


@EACH
def test_points_that_tell_nothing_are_refused(gain, fit, truth):
    for distances, gains in (
        ([0.0, 0.0, 1.0], [0.0, 0.0, 1.0]),
        ([1.0, 1.0], [0.5, 0.6]),
        ([1.0, 2.0], [0.5, math.nan]),
    ):
        with pytest.raises(UsageError, match="do not tell"):
            fit(torch.tensor(distances), torch.tensor(gains))


def test_a_level_curve_has_no_r2():
    assert math.isnan(exact.fit_bon(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0])).r2)
