"""REINFORCE leave-one-out: every completion is judged by the others of its prompt.

    s_i = π(y_i | x) / π_old(y_i | x) = exp Σ_t (log π − log π_old)
    L   = (1/C) Σ_i max( −A_i s_i, −A_i clip(s_i, 1 − ε, 1 + ε) )

A_i, the mean of the credit rule's advantages over the tokens of y_i, is by default the return
(score less kl_coef times the sequence's KL) minus the mean return of the other completions of the
prompt. That baseline is independent of y_i, so the gradient is unbiased for every group size.

Gradient: at s = 1 it is REINFORCE on the whole completion, −A_i ∇log π(y_i), with no division by
length. The ratio is a product over tokens, so a long completion leaves the range after a small
change of each token, and then no longer pulls.
Implementations: TRL as here (ratio of sequences, KL in the return and so in the baseline); OpenRLHF
takes the baseline of the score alone and charges the KL per token after it (`kl_placement: token`).
Source: Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!" (ICLR workshop on
structured prediction); Ahmadian et al. 2024, "Back to Basics: Revisiting REINFORCE Style
Optimization for Learning from Human Feedback in LLMs" (arXiv 2402.14740), below eq. 8.

    >>> worked(RLOO())
    -0.111132
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Batch, Metric
from truing.objectives.base import KNOBS
from truing.objectives.policy_gradient._base import PolicyGradient
from truing.objectives.policy_gradient._surrogates import (
    clip_metrics,
    clipped_surrogate,
    completion_mean,
    ratio_metrics,
    ratio_of,
)
from truing.ops import segment_sum


@dataclass(frozen=True, config=KNOBS)
class RLOO(PolicyGradient):
    """The clipped surrogate on whole completions.

    Shapes: log-probs over N in nats at the sampling temperature. Raises nothing of its own.
    Departures: the paper takes one step per rollout and needs no ratio; the clip is TRL's.
    """

    cliprange: Annotated[float, Field(gt=0)] = 0.2
    """ε: how far the ratio of a completion may move before its gradient is cut. Larger allows
    more drift per rollout; 0.2 in TRL."""

    recipe_defaults = {
        "baseline": "leave_one_out",
        "scale_rewards": "none",
        "kl_coef": 0.05,
        "num_generations": 4,
    }

    def surrogate(self, batch: Batch, logps_N: Tensor) -> tuple[Tensor, dict[str, Metric]]:
        log_ratio_N = logps_N - batch["sampled_logps_N"]
        ratio_C = ratio_of(segment_sum(log_ratio_N, batch.completion_N, batch.size_C))
        advantages_C = completion_mean(batch["advantages_N"], batch.completion_N, batch.size_C)
        loss_C = clipped_surrogate(ratio_C, advantages_C, self.cliprange)
        bounds = (1 - self.cliprange, 1 + self.cliprange)
        clips = clip_metrics(ratio_C, advantages_C, *bounds)
        return loss_C.sum(), ratio_metrics(ratio_C, log_ratio_N) | clips
