"""Geometric-mean policy optimisation: GRPO's token ratios, clipped one by one, then multiplied.

    z_t = log π(y_t) − log π_old(y_t),   a = sign(A_i)
    s_i = exp( (1/|y_i|) Σ_t a min(a z_t, c) )
    L   = −(1/C) Σ_i A_i s_i

A geometric mean hardly notices a single outlying token, so the range can be wide: e^±0.4 is 0.67
to 1.49. As in PPO only the side that A asks for is clipped: above where A > 0, below where A < 0.

Gradient: −A_i s_i (1/|y_i|) Σ ∇log π_t over the tokens within the range: a token that has left it
falls silent alone, where GSPO silences the whole completion.
Implementations: as the paper's algorithm 1; verl's `geo_mean` takes the sign from each token's own
advantage, which is the same where a completion has one.
Source: Zhao et al. 2025, "Geometric-Mean Policy Optimization" (arXiv 2507.20673), eq. 4 and
algorithm 1.

    >>> worked(GMPO(log_clip=0.2))
    -0.077213
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Batch, Metric
from truing.objectives.base import KNOBS
from truing.objectives.policy_gradient._base import PolicyGradient
from truing.objectives.policy_gradient._surrogates import (
    clip_metrics,
    completion_mean,
    ratio_metrics,
    ratio_of,
)


def pessimistic_log_ratio(log_ratio_N: Tensor, advantages_N: Tensor, log_clip: float) -> Tensor:
    """z clipped above at c where A > 0, below at −c where A < 0. Nats, shape [N]."""
    sign_N = torch.sign(advantages_N)
    return sign_N * (sign_N * log_ratio_N).clamp(max=log_clip)


@dataclass(frozen=True, config=KNOBS)
class GMPO(PolicyGradient):
    """One ratio per completion, the geometric mean of its clipped token ratios.

    Shapes: log-probs over N in nats at the sampling temperature. Raises nothing of its own.
    Departures: none.
    """

    log_clip: Annotated[float, Field(gt=0)] = 0.4
    """c: how far a token's log-ratio may move before its gradient is cut, in nats. Larger allows
    more drift per rollout; 0.4 in the paper."""

    def surrogate(self, batch: Batch, logps_N: Tensor) -> tuple[Tensor, dict[str, Metric]]:
        where = (batch.completion_N, batch.size_C)
        log_ratio_N = logps_N - batch["sampled_logps_N"]
        advantages_C = completion_mean(batch["advantages_N"], *where)
        advantages_N = advantages_C[batch.completion_N]
        clipped_N = pessimistic_log_ratio(log_ratio_N, advantages_N, self.log_clip)
        ratio_C = ratio_of(completion_mean(clipped_N, *where))
        ratio_N = ratio_of(log_ratio_N.detach())
        bounds = (math.exp(-self.log_clip), math.exp(self.log_clip))
        metrics = ratio_metrics(ratio_N, log_ratio_N)
        metrics |= clip_metrics(ratio_N, advantages_N, *bounds)
        return -(advantages_C * ratio_C).sum(), metrics
