"""Soft adaptive policy optimisation: a smooth gate where PPO has a cliff.

    w_n  = π(y_n) / π_old(y_n),   τ = τ_positive where A > 0, else τ_negative
    f(w) = (4/τ) σ( τ (w − 1) )
    L    = −(1/C) Σ_i (1/|y_i|) Σ_t f(w) A                       aggregation: sequence

A token's gradient fades as its ratio leaves 1, in either direction, and never ends at a bound.
Steps that make a token unlikelier raise all others, so they fade faster: τ_negative > τ_positive.

Gradient: −A w sech²(τ(w − 1)/2) ∇log π: REINFORCE's at w = 1, and falling like e^(−τ w) for large
ratios. The value at w = 1 is −(2/τ) A, not −A: only slopes matter.
Implementations: TRL and verl agree; Trinity detaches f and multiplies it by log π, so that the pull
grows with w instead of fading, and averages over tokens.
Source: Gao et al. 2025, "Soft Adaptive Policy Optimization" (arXiv 2511.20347), eq. 5.

    >>> worked(SAPO())
    -0.179256
"""

from __future__ import annotations

from typing import Annotated

import torch
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
)


def soft_gate(ratio_N: Tensor, advantages_N: Tensor, positive: float, negative: float) -> Tensor:
    """(4/τ) σ(τ (w − 1)), slope 1 at w = 1; τ by the sign of A. Shape [N]."""
    tau_N = torch.full_like(ratio_N, negative).masked_fill(advantages_N > 0, positive)
    return 4 / tau_N * torch.sigmoid(tau_N * (ratio_N - 1))


@dataclass(frozen=True, config=KNOBS)
class SAPO(TokenPolicyGradient):
    """The softly gated ratio, per token.

    Shapes: everything over N; log-probs in nats at the sampling temperature. Raises nothing of
    its own. Departures: none.
    """

    tau_positive: Annotated[float, Field(gt=0)] = 1.0
    """τ where A > 0: how fast the gradient fades as the ratio leaves 1. Larger stays closer to
    the sampling policy; 1 in the paper."""
    tau_negative: Annotated[float, Field(gt=0)] = 1.05
    """τ where A ≤ 0. Larger fades faster; 1.05 in the paper, larger than τ_positive."""
    aggregation: Aggregation = "sequence"
    """How tokens are averaged: over all tokens of the step, or over completions, each as its
    token mean (sequence, the paper's), its sum (sequence_sum), or sum / max_completion_length
    (constant)."""
    max_completion_length: Annotated[int, Field(gt=0)] = 64
    """What `constant` divides by: the stage's own limit. Larger makes every step smaller."""

    step_zero = {"val/ratio": (1.0, 0.0)}

    def token_losses(self, batch: Batch, logps_N: Tensor) -> tuple[Tensor, dict[str, Metric]]:
        advantages_N = batch["advantages_N"]
        log_ratio_N = logps_N - batch["sampled_logps_N"]
        ratio_N = ratio_of(log_ratio_N)
        gate_N = soft_gate(ratio_N, advantages_N, self.tau_positive, self.tau_negative)
        return -advantages_N * gate_N, ratio_metrics(ratio_N, log_ratio_N)
