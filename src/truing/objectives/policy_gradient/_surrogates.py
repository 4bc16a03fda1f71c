"""What the policy-gradient objectives share: ratios, surrogates, KL terms, averages over tokens.

N predicted tokens, flat · C completions
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from truing.batch import Metric, extreme_of, mean_of
from truing.ops import EXP_LIMIT, kl_k2, kl_k3, segment_sum

Aggregation = Literal["token", "sequence", "sequence_sum", "constant"]
"""How per-token losses become one number: their mean over all tokens of the step (token), or the
mean over completions of each one's mean (sequence), of its sum (sequence_sum), of its sum over
max_completion_length (constant)."""
KLEstimator = Literal["weighted_k3", "k3", "k2"]


def ratio_of(log_ratio: Tensor) -> Tensor:
    """π / π_old from its logarithm, which is clamped inside `exp` only. Any shape."""
    return log_ratio.clamp(-EXP_LIMIT, EXP_LIMIT).exp()


def completion_mean(values_N: Tensor, completion_N: Tensor, completions: int) -> Tensor:
    """Mean over the tokens of each completion; 0 where there are none. Shape [C]."""
    lengths_C = torch.bincount(completion_N, minlength=completions).clamp(min=1)
    return segment_sum(values_N, completion_N, completions) / lengths_C


def aggregate(
    loss_N: Tensor,
    completion_N: Tensor,
    completions: int,
    aggregation: Aggregation,
    max_completion_length: int,
) -> Tensor:
    """The sum that is the average asked for, once divided by the step's tokens or completions."""
    if aggregation == "sequence":
        return completion_mean(loss_N, completion_N, completions).sum()
    if aggregation == "constant":
        return loss_N.sum() / max_completion_length
    return loss_N.sum()


def clipped_surrogate(
    ratio: Tensor,
    advantages: Tensor,
    epsilon: float,
    epsilon_high: float | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """max(−A w, −A clip(w, 1 − ε, 1 + ε_high)): no incentive to move further outside the range.

    With `dual_clip` c, where A < 0 the loss is at most −c A: a single exploded ratio cannot rule
    the step. ε_high is ε if it is not given. Any shape.
    """
    high = epsilon if epsilon_high is None else epsilon_high
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - epsilon, 1 + high))
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


def clipped_value_loss(
    values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, epsilon: float | None
) -> Tensor:
    """½ max of the squared errors of V and of V clipped to V_old ± ε; no clipping if None."""
    error_N = (values_N - returns_N).square()
    if epsilon is not None:
        near_N = old_values_N + (values_N - old_values_N).clamp(-epsilon, epsilon)
        error_N = torch.maximum(error_N, (near_N - returns_N).square())
    return error_N / 2


def kl_term(
    logps_N: Tensor, reference_logps_N: Tensor, ratio_N: Tensor, estimator: KLEstimator
) -> Tensor:
    """KL to the reference as a loss, per token: k2, k3, or k3 weighted by w = π / π_old. Nats."""
    if estimator == "k2":
        return kl_k2(logps_N, reference_logps_N)
    k3_N = kl_k3(logps_N, reference_logps_N)
    return ratio_N * k3_N if estimator == "weighted_k3" else k3_N


def ratio_metrics(ratio: Tensor, log_ratio_N: Tensor) -> dict[str, Metric]:
    """How far the policy is from the one that sampled. `ratio` is what the method clips."""
    metrics = {
        "policy/approxkl_avg": mean_of(log_ratio_N.square() / 2),
        "val/ratio": mean_of(ratio),
        "val/ratio_clamped": mean_of((log_ratio_N.abs() > EXP_LIMIT).float()),
    }
    if ratio.numel():  # a batch may have lost all its completions; then there is no largest
        metrics["val/ratio_max"] = extreme_of(ratio, "max")
    return metrics


def clip_metrics(ratio: Tensor, advantages: Tensor, low: float, high: float) -> dict[str, Metric]:
    """Where the clip has ended the gradient: ratios beyond a bound on the side A asked for."""
    return share_metrics((ratio < low) & (advantages < 0), (ratio > high) & (advantages > 0))


def share_metrics(low: Tensor, high: Tensor) -> dict[str, Metric]:
    """Shares of what is clipped at the lower bound, at the upper one, at either."""
    clipped = {"low": low, "high": high, "region": low | high}
    return {f"clip_ratio/{name}_mean": mean_of(where.float()) for name, where in clipped.items()}
