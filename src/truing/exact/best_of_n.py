"""Best-of-n as the law it is: its probabilities, its distance, what it wins, what distils it.

    F(y) = P_ref(r ≤ r(y))   F⁻(y) = P_ref(r < r(y))   ties are broken evenly
    π_n(y) = ref(y) (Fⁿ − F⁻ⁿ)/(F − F⁻) = ref(y) F^{n−1} Σ_{i=1..n} (F⁻/F)^{i−1}

Y sentences

Only the order of rewards counts. Source: Beirami et al. 2024 (arXiv 2401.01879).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from truing.errors import UsageError
from truing.exact.language import segment_logsumexp
from truing.exact.regularised import expectation, kl
from truing.ops import log1mexp


def log_quantiles(reference_logps_Y: Tensor, rewards_Y: Tensor) -> Tensor:
    """log F(y) = log P_ref(r ≤ r(y)): the reward that BOND and vBoN climb, ≤ 0.

    Shape [Y], nats. Raises nothing. Source: Sessa et al. 2024 (arXiv 2407.14622).
    """
    sorted_Y, order_Y = rewards_Y.sort()
    below_Y = reference_logps_Y[order_Y].logcumsumexp(0)
    return below_Y[torch.searchsorted(sorted_Y, rewards_Y, right=True) - 1]


def best_of_n_logps(reference_logps_Y: Tensor, rewards_Y: Tensor, n: int) -> Tensor:
    """log π_n(y), the law of the best of n samples of ref, ties broken evenly.

    Shape [Y], nats, finite; n ≥ 1. Raises UsageError for another n. Source: algorithm sheet, 1.14.
    """
    _refuse_n(n)
    tied_Y = _log_tied(reference_logps_Y, rewards_Y)
    quantile_Y = log_quantiles(reference_logps_Y, rewards_Y)
    # q = F⁻/F = 1 − tied/F, in logs: the difference of nearly equal F would lose every digit
    share_Y = (tied_Y - quantile_Y).clamp(max=0.0)
    some_of_n_Y = log1mexp(n * log1mexp(share_Y))
    # below a share of 1e-308 q rounds to 1, and the sum of n powers of it to n
    some_of_n_Y = torch.where(some_of_n_Y.isinf(), math.log(n) + share_Y, some_of_n_Y)
    return reference_logps_Y - tied_Y + n * quantile_Y + some_of_n_Y


def best_of_n_kl(reference_logps_Y: Tensor, rewards_Y: Tensor, n: int) -> Tensor:
    """KL(π_n‖ref), exactly, ≤ log n − (n−1)/n and ≤ −log ref(the best sentences).

    Scalar, nats; n ≥ 1. Raises UsageError for another n. Source: algorithm sheet, O38.
    """
    return kl(best_of_n_logps(reference_logps_Y, rewards_Y, n), reference_logps_Y)


def kl_bound(n: int) -> float:
    """log n − (n−1)/n: what KL(π_n‖ref) is at most, and is where no two samples tie.

    Nats; n ≥ 1. Raises UsageError for another n. Source: arXiv 2401.01879.
    """
    _refuse_n(n)
    return math.log(n) - (n - 1) / n


def best_of_n_win_rate(reference_logps_Y: Tensor, rewards_Y: Tensor, n: int) -> Tensor:
    """P(best of n ≻ one sample) + ½ P(tie) = E_π_n[F − tied/2] ≤ n/(n+1).

    Scalar in [½, 1]; n ≥ 1. Raises UsageError for another n. Source: algorithm sheet, O39.
    """
    tied_Y = _log_tied(reference_logps_Y, rewards_Y).exp()
    beaten_Y = log_quantiles(reference_logps_Y, rewards_Y).exp() - tied_Y / 2
    return expectation(best_of_n_logps(reference_logps_Y, rewards_Y, n), beaten_Y)


def vbon_objective(logps_Y: Tensor, reference_logps_Y: Tensor, rewards_Y: Tensor, n: int) -> Tensor:
    """E_π[log π_n] + H(π) = −KL(π‖π_n) ≤ 0, and 0 only at Best-of-n itself.

    Scalar, nats; n ≥ 1. Raises UsageError for another n. Source: Amini et al. 2024
    (arXiv 2407.06057).
    """
    return -kl(logps_Y, best_of_n_logps(reference_logps_Y, rewards_Y, n))


def vbon_lower_bound(
    logps_Y: Tensor, reference_logps_Y: Tensor, rewards_Y: Tensor, n: int
) -> Tensor:
    """(n−1) E_π[log F] − KL(π‖ref): below `vbon_objective` by 0 to log n, and needs no π_n.

    Scalar, nats; n ≥ 1. Raises UsageError for another n. Source: arXiv 2407.06057; sheet, O42.
    """
    _refuse_n(n)
    climb = expectation(logps_Y, log_quantiles(reference_logps_Y, rewards_Y))
    return (n - 1) * climb - kl(logps_Y, reference_logps_Y)


def bond_loss(
    logps_Y: Tensor, reference_logps_Y: Tensor, rewards_Y: Tensor, n: int, backward: float
) -> Tensor:
    """(1−b) KL(π_n‖π) + b KL(π‖π_n) ≥ 0: Best-of-n distilled, 0 only at π_n.

    Scalar, nats; n ≥ 1; `backward` b in [0, 1]: 0 covers π_n (SFT on its samples), 1 seeks its
    mode. Raises UsageError for another n. Source: Sessa et al. 2024 (arXiv 2407.14622).
    """
    target_Y = best_of_n_logps(reference_logps_Y, rewards_Y, n)
    return (1 - backward) * kl(target_Y, logps_Y) + backward * kl(logps_Y, target_Y)


def _log_tied(reference_logps_Y: Tensor, rewards_Y: Tensor) -> Tensor:
    """log P_ref(r = r(y))."""
    level_Y = torch.searchsorted(rewards_Y.sort().values, rewards_Y)
    return segment_logsumexp(reference_logps_Y, level_Y, len(rewards_Y))[level_Y]


def _refuse_n(n: int) -> None:
    if n < 1:
        raise UsageError(f"best of {n} is nothing", where="best of n", remedy="give n ≥ 1")
