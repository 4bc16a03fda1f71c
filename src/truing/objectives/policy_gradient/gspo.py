"""Group sequence policy optimisation: one ratio per completion, the geometric mean of its tokens'.

    s_i = exp( (1/|y_i|) Σ_t (log π − log π_old) )
    L   = (1/C) Σ_i max( −A_i s_i, −A_i clip(s_i, 1 − ε, 1 + ε_high) )

The reward is of the whole completion, so the ratio and the clip are too; the root keeps ratios of
short and long completions on one scale, hence a range a thousand times narrower than PPO's.

Gradient: −s_i A_i (1/|y_i|) Σ_t ∇log π_t: all tokens of a completion pull alike, and all stop
together when it has left the range. `level: token` has the same value and gradient where A is the
same for all tokens; each token keeps its own A where it is not.
Implementations: TRL takes any aggregation with the sequence ratio, here it is the paper's; verl and
NeMo-RL agree on s. All leave the KL term out.
Source: Zheng et al. 2025, "Group Sequence Policy Optimization" (arXiv 2507.18071), eq. 5 to 7, and
13 to 14 for single tokens.

    >>> worked(GSPO())
    -0.068529
"""

from __future__ import annotations

from typing import Annotated, Literal

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


@dataclass(frozen=True, config=KNOBS)
class GSPO(PolicyGradient):
    """The clipped surrogate on the length-normalised ratio of completions.

    Shapes: log-probs over N in nats at the sampling temperature. Raises nothing of its own.
    Departures: none.
    """

    epsilon: Annotated[float, Field(gt=0)] = 3e-4
    """ε: how far s may fall before the gradient is cut. Larger allows more drift per rollout;
    0.0003 in the paper."""
    epsilon_high: Annotated[float, Field(gt=0)] = 4e-4
    """ε_high: how far s may rise. Larger allows more drift per rollout; 0.0004 in the paper."""
    level: Literal["sequence", "token"] = "sequence"
    """sequence: one advantage per completion, the mean over its tokens. token: each token its own,
    with the gradient of its own log-prob (GSPO-token)."""

    def surrogate(self, batch: Batch, logps_N: Tensor) -> tuple[Tensor, dict[str, Metric]]:
        where = (batch.completion_N, batch.size_C)
        log_ratio_N = logps_N - batch["sampled_logps_N"]
        ratio, advantages = ratio_of(completion_mean(log_ratio_N, *where)), batch["advantages_N"]
        if self.level == "token":  # the value of s, the gradient of log π
            ratio = ratio.detach()[batch.completion_N] * ratio_of(logps_N - logps_N.detach())
        else:
            advantages = completion_mean(advantages, *where)
        loss = clipped_surrogate(ratio, advantages, self.epsilon, self.epsilon_high)
        if self.level == "token":
            loss = completion_mean(loss, *where)
        clips = clip_metrics(ratio, advantages, 1 - self.epsilon, 1 + self.epsilon_high)
        return loss.sum(), ratio_metrics(ratio, log_ratio_N) | clips
