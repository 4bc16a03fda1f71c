"""Credit without a critic: a completion is judged against a baseline, often its own group's.

N tokens, flat · C completions · G groups
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Batch, Metric
from truing.ops import discounted_deltas, segment_sum, whiten
from truing.rollouts.credit._statistics import group_deviation, group_mean
from truing.rollouts.credit.base import (
    KNOBS,
    Credit,
    Credited,
    conditioned,
    drift,
    rollout_metrics,
)

SILENT = 1e-6
"""A group whose scores deviate by no more says nothing."""


@dataclass(frozen=True, config=KNOBS)
class GroupCredit(Credit):
    """Score minus a baseline, over a deviation: REINFORCE, RLOO, ReMax, REINFORCE++ and GRPO.

        s_i = clip(score − missing-EOS penalty, ±score_clip) − overlong punishment
        K_i = Σ_t k_{i,t}
        R_i = s_i − kl_coef · K_i     (kl_placement: return)  or  s_i     (token)
        A_i = (R_i − b_i) / (std of the group + ε)            b_i, std: as the fields say
        A_{i,t} = A_i − kl_coef · Σ_{t'≥t} k_{i,t'}           (kl_placement: token)

    Shapes: scores_C in units of the reward, k = log π_old − log π_ref in nats. Sources: RLOO,
    Ahmadian et al. 2024 (arXiv 2402.14740), below eq. 8; GRPO, Shao et al. 2024 (arXiv 2402.03300),
    section 4.1.2; Dr. GRPO, Liu et al. 2025 (arXiv 2503.20783), section 3; REINFORCE++, Hu et al.
    2025 (arXiv 2501.03262); ReMax, Li et al. 2023 (arXiv 2310.10505); overlong punishment, DAPO, Yu
    et al. 2025 (arXiv 2503.14476), eq. 13. Departures: deviations are Bessel's; a group of one
    completion has no baseline and no deviation, so its advantage is 0, and it is counted; with
    scale_rewards: group a deviation of 1e-6 or less is none.
    """

    baseline: Literal["none", "batch", "group", "leave_one_out", "greedy"] = "group"
    """What R is compared with: nothing, the rollout's mean, the group's mean, the mean of the
    others in the group (unbiased), or the score of the greedy completion."""
    scale_rewards: Literal["none", "group", "batch"] = "group"
    """Divided by the group's deviation (biased: it favours prompts that are nearly solved or
    nearly hopeless), whitened over all tokens of the rollout, or left as they are."""
    scale_epsilon: Annotated[float, Field(gt=0)] = 1e-4
    """ε added to the group's deviation. Larger damps groups whose scores hardly differ."""
    kl_coef: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Nats of drift cost this much reward. Larger stays closer to the reference."""
    kl_placement: Literal["return", "token"] = "return"
    """return: the whole KL is part of R, so also of the baseline. token: each token pays for the
    drift from itself to the end, after the baseline."""
    missing_eos_penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Subtracted from the score of a completion that was cut before its stop token."""
    score_clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The score, less the penalty, is clipped to ± this before the baseline is taken. Smaller
    bounds what one completion can teach; null: off. 10 in OpenRLHF."""
    overlong_cache: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Over this many tokens before max_completion_length (below 1: this share of it) the score
    falls by up to 1; null: off. A fifth of the limit in DAPO."""
    overlong_filter: bool = False
    """Completions that were cut give no loss; they stay in the baseline."""
    max_completion_length: Annotated[int, Field(gt=0)] = 64
    """Where the overlong punishment is full: the stage's own limit."""

    @property
    def wants_greedy(self) -> bool:
        return self.baseline == "greedy"

    @model_validator(mode="after")
    def _fits(self) -> GroupCredit:
        if self.overlong_cache is not None and self.overlong_cache > self.max_completion_length:
            raise ValueError("overlong_cache is longer than max_completion_length")
        return self

    def __call__(self, batches: list[Batch]) -> Credited:
        shaped = [self._shaped(batch) for batch in batches]
        returns = [self._returns(batch, s_C) for batch, s_C in zip(batches, shaped, strict=True)]
        whole_mean = torch.cat(returns).mean()
        advantages = [
            self._advantages(batch, returns_C, whole_mean)
            for batch, returns_C in zip(batches, returns, strict=True)
        ]
        if self.scale_rewards == "batch":
            sizes = [batch.size_N for batch in batches]
            advantages = list(torch.split(whiten(torch.cat(advantages)), sizes))
        metrics = rollout_metrics(batches, shaped, self.kl_coef) | _spread(batches)
        credited = [
            batch.with_columns(advantages_N=a_N)
            for batch, a_N in zip(batches, advantages, strict=True)
        ]
        if self.overlong_filter:
            credited = [batch.keep(batch["finished_C"]) for batch in credited]
        return credited, metrics

    def _shaped(self, batch: Batch) -> Tensor:
        """Scores after the penalties on form."""
        scores_C = conditioned(batch, self.missing_eos_penalty, self.score_clip)
        if self.overlong_cache is None:
            return scores_C
        limit, cache = self.max_completion_length, self.overlong_cache
        cache = cache * limit if cache < 1 else cache
        over_C = (batch.lengths_C - (limit - cache)).to(scores_C.dtype) / cache
        return scores_C - over_C.clamp(0, 1)

    def _returns(self, batch: Batch, shaped_C: Tensor) -> Tensor:
        if self.kl_placement == "token":
            return shaped_C
        kl_C = segment_sum(drift(batch), batch.completion_N, batch.size_C)
        return shaped_C - self.kl_coef * kl_C

    def _advantages(self, batch: Batch, returns_C: Tensor, whole_mean: Tensor) -> Tensor:
        advantages_C = returns_C - self._baseline(batch, returns_C, whole_mean)
        if self.scale_rewards == "group":
            deviation_C = group_deviation(batch, returns_C)
            advantages_C = advantages_C / (deviation_C + self.scale_epsilon)
            # AdamW would make whole steps of what rounding leaves of equal scores
            advantages_C = torch.where(deviation_C > SILENT, advantages_C, 0)
        advantages_N = advantages_C[batch.completion_N]
        if self.kl_placement == "token":
            costs_N = self.kl_coef * drift(batch)
            advantages_N = advantages_N - discounted_deltas(costs_N, batch.lengths_C.tolist(), 1.0)
        return advantages_N

    def _baseline(self, batch: Batch, returns_C: Tensor, whole_mean: Tensor) -> Tensor:
        if self.baseline == "none":
            return torch.zeros_like(returns_C)
        if self.baseline == "batch":
            return whole_mean.expand_as(returns_C)
        if self.baseline == "greedy":
            return batch["baseline_C"].to(returns_C.dtype)
        size_C, mean_C = group_mean(batch, returns_C)
        if self.baseline == "group":
            return mean_C
        return mean_C + (mean_C - returns_C) / (size_C - 1).clamp(min=1)  # of the others


def _spread(batches: list[Batch]) -> dict[str, Metric]:
    """How much the groups have to say: a group whose scores are all equal teaches nothing."""
    deviation_C = torch.cat([group_deviation(batch, batch["scores_C"]) for batch in batches])
    size_C = torch.cat([group_mean(batch, batch["scores_C"])[0] for batch in batches])
    weight_C = torch.where(size_C > 1, 1 / size_C, 0)  # every group counts once, one alone not
    silent_C = (deviation_C <= SILENT).to(weight_C.dtype)
    groups = float(weight_C.sum())
    return {
        "reward_std": Metric((deviation_C * weight_C).sum().float(), groups),
        "frac_reward_zero_std": Metric((silent_C * weight_C).sum().float(), groups),
        "groups/singletons": Metric((size_C == 1).sum().float(), 1.0),
    }
