"""How gold reward rises and falls while a proxy is optimised: Gao's two forms, and their fit.

    R_bon(d) = d (α − β d)        R_rl(d) = d (α − β log d)        d = √KL(π‖ref), √nats

R is the gain over the reference, so both are 0 at d = 0. α is how fast the gain starts, β how fast
the proxy's faults are found. Source: Gao et al. 2022 (arXiv 2210.10760); algorithm sheet, O43.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from truing.errors import UsageError

CLOSEST_RL = 0.3
"""√nats: the RL form's slope at 0 is infinite, no run's is; nearer points are not fitted."""


class Peak(NamedTuple):
    """Where a form stops rising and where it has lost everything again."""

    distance: float
    """d of the maximum, √nats."""
    gain: float
    """R there."""
    zero: float
    """d > 0 where R is back at 0, √nats."""


class Fit(NamedTuple):
    """Least squares of one of the two forms."""

    alpha: float
    beta: float
    r2: float
    """1 − residual / spread about the mean, over the points used; NaN where they do not vary."""
    points: int
    """How many points were used."""


def bon_gain(distances: Tensor, alpha: float, beta: float) -> Tensor:
    """R_bon(d) = d (α − β d). Shape of `distances`, each ≥ 0. Raises nothing. Source: above."""
    return distances * (alpha - beta * distances)


def rl_gain(distances: Tensor, alpha: float, beta: float) -> Tensor:
    """R_rl(d) = d (α − β log d), 0 at 0. Shape of `distances`, each ≥ 0. Raises nothing.

    Its slope at 0 is +∞ for β > 0. Source: above.
    """
    return alpha * distances - beta * torch.xlogy(distances, distances)


def bon_peak(alpha: float, beta: float) -> Peak | None:
    """d = α/(2β), R = α²/(4β), zero at α/β; None unless α, β > 0: then there is no peak.

    Raises nothing. Source: algorithm sheet, O43.
    """
    if alpha <= 0 or beta <= 0:
        return None
    return Peak(alpha / (2 * beta), alpha**2 / (4 * beta), alpha / beta)


def rl_peak(alpha: float, beta: float) -> Peak | None:
    """d = e^{α/β−1}, R = β d, zero at e^{α/β}; None unless β > 0 and d fits a float.

    Raises nothing. Source: algorithm sheet, O43.
    """
    # e^700 is the last round power a float holds: a curve that turns there does not turn
    if beta <= 0 or alpha / beta > 700:
        return None
    distance = math.exp(alpha / beta - 1)
    return Peak(distance, beta * distance, math.exp(alpha / beta))


def fit_bon(distances: Tensor, gains: Tensor) -> Fit:
    """α, β of R_bon by least squares over the points given (linear in both).

    1-D, the same length, finite; gains over the reference. Raises UsageError where fewer than two
    different d > 0 remain. Source: arXiv 2210.10760, section 3.1.
    """
    return _fit(distances, gains, lambda d: -d.square(), closest=0.0)


def fit_rl(distances: Tensor, gains: Tensor) -> Fit:
    """α, β of R_rl by least squares over the points with d ≥ 0.3 (linear in both).

    1-D, the same length, finite; gains over the reference. Raises UsageError where fewer than two
    different d ≥ 0.3 remain. Source: arXiv 2210.10760, section 3.1; algorithm sheet, O43.
    """
    return _fit(distances, gains, lambda d: -torch.xlogy(d, d), closest=CLOSEST_RL)


def _fit(distances: Tensor, gains: Tensor, bend: Callable[[Tensor], Tensor], closest: float) -> Fit:
    used = (distances > 0) & (distances >= closest)
    d, gain = distances[used].double(), gains[used].double()
    if len(d) < 2 or d.min() == d.max() or not (d.isfinite() & gain.isfinite()).all():
        raise UsageError(
            f"{len(d)} of {len(distances)} points can be used, which do not tell α from β",
            where="over-optimisation fit",
            remedy=f"give finite gains at two different distances of at least {closest}",
        )
    design = torch.stack([d, bend(d)], dim=-1)
    solution = torch.linalg.lstsq(design, gain[:, None]).solution[:, 0]
    residual = (gain - design @ solution).square().sum()
    spread = (gain - gain.mean()).square().sum()
    r2 = float(1 - residual / spread) if spread > 0 else math.nan
    return Fit(float(solution[0]), float(solution[1]), r2, len(d))
