"""What the best of n scores, for every n, from one pool of samples scored once.

N samples of a pool · L levels of the proxy, each at the rank of its first sample · K sizes

The pool is drawn from the reference; the proxy picks, the gold reward tells what was picked.
"""

from __future__ import annotations

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
    if proxy_N.shape != gold_N.shape or not (proxy_N.isfinite() & gold_N.isfinite()).all():
        raise UsageError(
            "a pool needs a finite proxy and gold score for each sample",
            where="best_of_n_estimates",
            remedy="leave out a sample whose scoring failed, and report how many",
        )
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
    if not 1 <= n <= pool:
        raise UsageError(
            f"best of {n} from a pool of {pool}",
            where="order_weights",
            remedy="give n ≥ 1, and no more than the pool has samples",
        )
    # w(N) = n/N and w(k)/w(k+1) = 1 − (n−1)/k, so logs are added from the top down
    k = torch.arange(pool - 1, n - 1, -1, dtype=torch.float64)
    falling = torch.log1p(-(n - 1) / k).cumsum(0).exp()
    from_top = torch.cat([falling.new_ones(1), falling]) * (n / pool)
    return torch.cat([falling.new_zeros(n - 1), from_top.flip(0)])
