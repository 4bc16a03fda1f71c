"""What the best of n scores and costs, for every n, from one pool of samples scored once.

N samples of a pool · L levels of the proxy, each at the rank of its first sample · K sizes

The pool is drawn from the reference; the proxy picks, the gold reward tells what was picked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from truing.errors import UsageError
from truing.ops import segment_sum


def best_of_n_estimates(proxy_N: Tensor, gold_N: Tensor, sizes: Sequence[int]) -> Tensor:
    """Expected gold reward of the best of n by proxy, for each n of `sizes`.

        R̂_n = Σ_{k=n..N} C(k−1, n−1)/C(N, n) · gold of the k-th lowest by proxy

    Shape [K], unit of gold. Unbiased; samples that tie in proxy count with their mean gold, so
    their order does not matter. 1 ≤ n ≤ N; gold = proxy gives the proxy's own curve. Raises
    UsageError for another n or a score that is not a number. Source: algorithm sheet, O40; Nakano
    et al. 2021 (arXiv 2112.09332), appendix I.
    """
    proxy_N, gold_N = proxy_N.double(), gold_N.double()
    _refuse_pool(proxy_N, gold_N, "best_of_n_estimates")
    sorted_N, order_N = proxy_N.sort()
    level_N = torch.searchsorted(sorted_N, sorted_N)
    total_L = segment_sum(gold_N[order_N], level_N, len(level_N))
    count_L = segment_sum(torch.ones_like(gold_N), level_N, len(level_N))
    ranked_N = total_L[level_N] / count_L[level_N]
    return torch.stack([order_weights(len(ranked_N), n) @ ranked_N for n in sizes])


def order_weights(pool: int, n: int) -> Tensor:
    """C(k−1, n−1)/C(N, n) for k = 1..N: how often the k-th lowest is the best of n of the N.

    Shape [N], sums to one; relative error < 1e-10 up to N = 1e5. 1 ≤ n ≤ N. Raises UsageError for
    another n. Source: definition; binomials of that size overflow, their ratios do not.
    """
    _refuse_size(pool, n)
    # w(N) = n/N and w(k)/w(k+1) = 1 − (n−1)/k, so logs are added from the top down
    k = torch.arange(pool - 1, n - 1, -1, dtype=torch.float64)
    falling = torch.log1p(-(n - 1) / k).cumsum(0).exp()
    from_top = torch.cat([falling.new_ones(1), falling]) * (n / pool)
    return torch.cat([falling.new_zeros(n - 1), from_top.flip(0)])


def best_of_n_kl_estimates(proxy_N: Tensor, sizes: Sequence[int]) -> Tensor:
    """KL(π_n‖ref) as the ties of one pool tell it, for each n of `sizes`.

        KL = Σ_levels (Fⁿ − F⁻ⁿ) log[(Fⁿ − F⁻ⁿ)/(F − F⁻)]

    F = P_ref(r ≤ level), F⁻ = P_ref(r < level): π_n/ref depends on a sample's level of reward
    alone, so no log-prob is needed. Levels that tie in the pool are atoms with the pool's shares
    for F; a sample that ties with none stands for a piece without atoms, ∫ n uⁿ⁻¹ log(n uⁿ⁻¹) du
    over its 1/N. So a pool without ties gives log n − (n−1)/n exactly, and every tie takes
    something off. Shape [K], nats, in [0, log n − (n−1)/n]. An estimate and no bound: consistent
    as N grows, too large where atoms are rarer than 1/N, or where rounding hides that two samples
    are the same. 1 ≤ n ≤ N. Raises UsageError for another n or a score that is not a number.
    Source: the law of algorithm sheet 1.14 and O37, summed by levels; the bound is Beirami et al.
    2024 (arXiv 2401.01879), theorem 1.
    """
    _refuse_pool(proxy_N, proxy_N, "best_of_n_kl_estimates")
    pool = len(proxy_N)
    _, count_L = torch.unique(proxy_N.double(), return_counts=True)
    high_L = count_L.cumsum(0).double() / pool
    low_L = high_L.roll(1)
    low_L[0] = 0.0
    found = []
    for n in sizes:
        _refuse_size(pool, n)
        mass_L = high_L**n - low_L**n
        atom_L = torch.xlogy(mass_L, mass_L / (high_L - low_L))
        bend_L = torch.xlogy(high_L**n, high_L) - torch.xlogy(low_L**n, low_L) - mass_L / n
        smooth_L = math.log(n) * mass_L + (n - 1) * bend_L
        found.append(torch.where(count_L > 1, atom_L, smooth_L).sum().clamp(min=0.0))
    return torch.stack(found)


def _refuse_pool(proxy_N: Tensor, gold_N: Tensor, where: str) -> None:
    if proxy_N.shape != gold_N.shape or not (proxy_N.isfinite() & gold_N.isfinite()).all():
        raise UsageError(
            "a pool needs a finite proxy and gold score for each sample",
            where=where,
            remedy="leave out a sample whose scoring failed, and report how many",
        )


def _refuse_size(pool: int, n: int) -> None:
    if not 1 <= n <= pool:
        raise UsageError(
            f"best of {n} from a pool of {pool}",
            where="best of n",
            remedy="give n ≥ 1, and no more than the pool has samples",
        )
