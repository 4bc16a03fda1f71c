"""Pure tensor functions that objectives and credit are written in.

N tokens, flat · C completions · V vocabulary
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EXP_LIMIT = 20.0
"""Log-ratios are clamped to ±20 inside `exp` only (Appendix A of our sheet); e^20 is 5e8."""


def segment_sum(values_N: Tensor, segment_N: Tensor, segments: int) -> Tensor:
    """Sum of the values of each segment: Σ_{n: segment_n = c} values_n. Shape [segments]."""
    return values_N.new_zeros(segments).index_add(0, segment_N, values_N)


def kl_k1(logps_N: Tensor, reference_logps_N: Tensor) -> Tensor:
    """k1 = log π − log ref. Unbiased for KL(π‖ref) on samples of π; may be negative. Nats."""
    return logps_N - reference_logps_N


def kl_k2(logps_N: Tensor, reference_logps_N: Tensor) -> Tensor:
    """k2 = (log π − log ref)² / 2. Biased value, but its gradient is ∇KL(π‖ref). Nats."""
    return (logps_N - reference_logps_N).square() / 2


def kl_k3(logps_N: Tensor, reference_logps_N: Tensor) -> Tensor:
    """k3 = e^{−d} − 1 + d with d = log π − log ref. Unbiased, never negative. Nats.

    Written with expm1, as e^{−d} − 1 loses every digit near d = 0. Below d = −20 it stays at its
    value there: clamped inside `exp` alone, the other d would pull the policy further away.
    """
    d = (logps_N - reference_logps_N).clamp(min=-EXP_LIMIT)
    return torch.expm1(-d) + d


def whiten(values: Tensor, epsilon: float = 1e-8, *, keep_mean: bool = False) -> Tensor:
    """(x − mean) / sqrt(var + ε) over all elements, Bessel's variance; + mean with `keep_mean`.

    A single element has no variance and becomes 0 (or stays).
    """
    mean = values.mean()
    centred = values - mean
    variance = centred.square().sum() / max(values.numel() - 1, 1)
    whitened = centred * torch.rsqrt(variance + epsilon)
    return whitened + mean if keep_mean else whitened


def discounted_deltas(deltas_N: Tensor, lengths: list[int], decay: float) -> Tensor:
    """A_t = δ_t + decay · A_{t+1} within each completion, A = δ at its last token.

    `lengths` are the tokens of each completion, in the order they lie in N.
    """
    advantages_N = deltas_N.clone()
    start = 0
    for length in lengths:
        for t in range(start + length - 2, start - 1, -1):
            advantages_N[t] += decay * advantages_N[t + 1]
        start += length
    return advantages_N


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − e^x) for x < 0, accurate at both ends (Maechler 2012)."""
    near_zero = x > -math.log(2)
    # torch.where sends 0 · ∞ = NaN back through the branch it did not take: feed that one a safe x
    small = torch.where(near_zero, x, -1.0)
    large = torch.where(near_zero, -1.0, x)
    return torch.where(near_zero, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def explained_variance(predictions: Tensor, targets: Tensor) -> Tensor:
    """1 − Var(target − prediction) / Var(target); NaN where the targets do not vary."""
    spread = targets.var()
    explained = 1 - (targets - predictions).var() / spread
    return torch.where(spread > 0, explained, torch.nan)
