"""Generalised advantage estimation: what PPO's critic is for.

N tokens, flat · C completions
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Batch, Metric, mean_of
from truing.ops import discounted_deltas, explained_variance, whiten
from truing.rollouts.credit.base import (
    KNOBS,
    Credit,
    Credited,
    conditioned,
    drift,
    rollout_metrics,
)


@dataclass(frozen=True, config=KNOBS)
class GAE(Credit):
    """Generalised advantage estimation over a per-token reward that holds the KL penalty.

        s   = clip(score − missing-EOS penalty, ±score_clip)
        k_t = log π_old(y_t) − log π_ref(y_t)
        R_t = −kl_coef · k_t + [t is the last real token] · s          whitened, if asked for
        δ_t = R_t + γ V_{t+1} − V_t,   A_t = δ_t + γλ A_{t+1},   G_t = A_t + V_t

    V_t is the value of the state before token t; after the last token it is 0. Advantages are
    whitened after the returns are taken. Units: reward. Source: Schulman et al. 2015
    (arXiv 1506.02438), eq. 11-16; the KL in the reward: Ziegler et al. 2019 (arXiv 1909.08593),
    eq. 2. Departures: the score sits on the last real token, not on the padding after it.
    """

    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    """β: nats of drift cost this much reward. Larger stays closer; 0 turns the leash off."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    """γ: discount per token. Below 1, late rewards count less."""
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """λ: 1 trusts the sampled return (no bias), 0 trusts the value head (least variance)."""
    score_clip: Annotated[float, Field(gt=0)] | None = None
    """The score, normalised and less the penalty, is clipped to ± this. Smaller bounds what one
    completion can teach; null: off. 10 in OpenRLHF."""
    whiten_rewards: bool = False
    """Scale all per-token rewards of the rollout to deviation 1, keeping their mean. A larger
    score then teaches no more than a smaller one; off in Ziegler et al.'s default."""
    whiten_advantages: bool = True
    """Shift and scale advantages to mean 0 and deviation 1 over the whole rollout."""
    missing_eos_penalty: Annotated[float, Field(ge=0)] | None = None
    """Subtracted from the score of a completion that was cut before its stop token."""

    def __call__(self, batches: list[Batch]) -> Credited:
        scores = [conditioned(b, self.missing_eos_penalty, self.score_clip) for b in batches]
        sizes = [batch.size_N for batch in batches]
        rewards = [self._rewards(b, shaped_C) for b, shaped_C in zip(batches, scores, strict=True)]
        if self.whiten_rewards:
            rewards = list(torch.split(whiten(torch.cat(rewards), keep_mean=True), sizes))
        advantages = [
            self._advantages(batch, rewards_N)
            for batch, rewards_N in zip(batches, rewards, strict=True)
        ]
        returns = [
            advantages_N + batch["values_N"]
            for batch, advantages_N in zip(batches, advantages, strict=True)
        ]
        if self.whiten_advantages:
            advantages = list(torch.split(whiten(torch.cat(advantages)), sizes))
        credited = [
            batch.with_columns(advantages_N=advantages_N, returns_N=returns_N)
            for batch, advantages_N, returns_N in zip(batches, advantages, returns, strict=True)
        ]
        return credited, self._metrics(credited, scores)

    def _rewards(self, batch: Batch, shaped_C: Tensor) -> Tensor:
        rewards_N = -self.kl_coef * drift(batch)
        return rewards_N.index_add(0, batch.last_C, shaped_C.to(rewards_N.dtype))

    def _advantages(self, batch: Batch, rewards_N: Tensor) -> Tensor:
        values_N = batch["values_N"]
        next_values_N = torch.cat([values_N[1:], values_N.new_zeros(1)])
        next_values_N[batch.last_C] = 0.0
        deltas_N = rewards_N + self.gamma * next_values_N - values_N
        return discounted_deltas(deltas_N, batch.lengths_C.tolist(), self.gamma * self.lam)

    def _metrics(self, batches: list[Batch], scores: list[Tensor]) -> dict[str, Metric]:
        metrics = rollout_metrics(batches, scores, self.kl_coef)
        values_N = torch.cat([b["values_N"] for b in batches])
        returns_N = torch.cat([b["returns_N"] for b in batches])
        if returns_N.numel() > 1 and float(returns_N.var()) > 0:
            metrics["val/explained_variance"] = mean_of(explained_variance(values_N, returns_N))
        return metrics
