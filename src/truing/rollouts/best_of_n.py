"""Best-of-N: draw n completions, keep the one with the best score; and what any smaller n gives.

P prompts · N completions of one prompt · K sizes, 1..N

How far that is from the sampler, `truing.exact.kl_bound` says: a bound, never reported as a KL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from truing.exact import best_of_n_estimates, best_of_n_kl_estimates

Numbers = Sequence[float | None]
"""Scores of one prompt's completions; None where a completion could not be scored."""


def best(scores: Numbers) -> int | None:
    """Index of the best score; the first of equals, so that the result does not depend on luck.

    A completion without a score is never the best; None where none has one.
    """
    scored = [(i, score) for i, score in enumerate(scores) if score is not None]
    return max(scored, key=lambda found: found[1])[0] if scored else None


@dataclass(frozen=True, slots=True)
class Curve:
    """What the best of n scores and costs, for every n from 1 to N, prompt by prompt."""

    proxy_PK: Tensor
    """Expected score of the pick, by the reward that picks. Rises with n."""
    gold_PK: Tensor | None
    """The same by a reward that does not pick, where there is one."""
    kl_PK: Tensor
    """KL(best of n ‖ sampler) estimated from the pool's ties, nats: at most the bound."""
    left_out: int
    """Prompts that are not in the curve, because one of their completions has no score."""

    @property
    def sizes(self) -> range:
        return range(1, self.proxy_PK.shape[1] + 1)


def curve(proxy: Sequence[Numbers], gold: Sequence[Numbers] | None = None) -> Curve | None:
    """The reward-KL curve of Best-of-N from one pool of N scored completions a prompt.

        R̂_n = Σ_{k=n..N} C(k−1, n−1)/C(N, n) · score of the k-th lowest by proxy

    Unbiased for every n ≤ N, which the mean over disjoint parts of the pool is too, but with more
    variance, and the best of n drawn from the pool again is not. A prompt is in the curve for
    every n or for none, so that its shape is not one of the prompts. None where no prompt has all
    its scores. Source: algorithm sheet, O40; see `truing.exact`.
    """
    golds = proxy if gold is None else gold
    pools = [
        (torch.tensor(ours, dtype=torch.float64), torch.tensor(theirs, dtype=torch.float64))
        for ours, theirs in zip(proxy, golds, strict=True)
        if None not in ours and None not in theirs
    ]
    if not pools:
        return None
    sizes = range(1, len(pools[0][0]) + 1)
    return Curve(
        proxy_PK=torch.stack([best_of_n_estimates(r_N, r_N, sizes) for r_N, _ in pools]),
        gold_PK=None
        if gold is None
        else torch.stack([best_of_n_estimates(r_N, g_N, sizes) for r_N, g_N in pools]),
        kl_PK=torch.stack([best_of_n_kl_estimates(r_N, sizes) for r_N, _ in pools]),
        left_out=len(proxy) - len(pools),
    )
