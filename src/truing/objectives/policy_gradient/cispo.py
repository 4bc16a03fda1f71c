"""Clipped importance-sampling weights: REINFORCE whose correction is bounded, not cut off.

    w_n = π(y_n) / π_old(y_n)
    L   = −(1/N) Σ_n sg[ clip(w_n, w_min, w_max) ] A_n log π(y_n)      sg: no gradient

PPO's clip silences a token that has left the range, and the rare tokens that turn an argument
leave it first. Here every token keeps a gradient; only its weight is bounded.

Gradient: −clip(w) A ∇log π: in a rollout's first step that of REINFORCE; later the weight of a
token that has become likelier stops growing at w_max. The value itself says nothing.
Implementations: the bound is absolute in TRL and Liger (5 means w ≤ 5), 1 + ε in open-instruct,
two-sided 1 ± ε in verl, NeMo-RL and SkyRL. Here absolute, with an optional lower one: verl's 0.2
is `ratio_max: 1.2, ratio_min: 0.8`.
Source: MiniMax 2025, "MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention"
(arXiv 2506.13585), eq. 4 and 5.

    >>> worked(CISPO(ratio_max=1.2))
    -0.080639
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Batch, Metric
from truing.objectives.base import KNOBS
from truing.objectives.policy_gradient._base import TokenPolicyGradient
from truing.objectives.policy_gradient._surrogates import (
    Aggregation,
    ratio_metrics,
    ratio_of,
    share_metrics,
)


def cispo_loss(
    logps_N: Tensor, ratio_N: Tensor, advantages_N: Tensor, low: float, high: float
) -> Tensor:
    """−sg[clip(w, low, high)] A log π per token. Shape [N]."""
    return -ratio_N.detach().clamp(low, high) * advantages_N * logps_N


@dataclass(frozen=True, config=KNOBS)
class CISPO(TokenPolicyGradient):
    """Advantage-weighted log-likelihood with bounded importance weights.

    Shapes: everything over N; log-probs in nats at the sampling temperature. Raises nothing of
    its own. Departures: bounds are the ratios themselves, where the paper writes 1 ± ε.
    """

    ratio_max: Annotated[float, Field(ge=1)] = 5.0
    """w_max: the largest weight. Larger corrects more and varies more; 5 in TRL and Liger."""
    ratio_min: Annotated[float, Field(ge=0, le=1)] | None = None
    """w_min: the smallest weight, null: none, as in the paper. Larger keeps tokens that have
    become unlikely in play; 0.8 in verl."""
    aggregation: Aggregation = "token"
    """How tokens are averaged: over all tokens of the step (the paper's), or over completions, each
    as its token mean (sequence), its sum (sequence_sum), or sum / max_completion_length
    (constant)."""
    max_completion_length: Annotated[int, Field(gt=0)] = 64
    """What `constant` divides by: the stage's own limit. Larger makes every step smaller."""

    unit = "tokens"
    # no clip share at step 0: the default bound is so wide that it would hold of any policy
    step_zero = {"val/ratio": (1.0, 0.0)}

    def token_losses(self, batch: Batch, logps_N: Tensor) -> tuple[Tensor, dict[str, Metric]]:
        log_ratio_N = logps_N - batch["sampled_logps_N"]
        ratio_N = ratio_of(log_ratio_N)
        low = 0.0 if self.ratio_min is None else self.ratio_min
        loss_N = cispo_loss(logps_N, ratio_N, batch["advantages_N"], low, self.ratio_max)
        shares = share_metrics(ratio_N < low, ratio_N > self.ratio_max)
        return loss_N, ratio_metrics(ratio_N, log_ratio_N) | shares
