"""Credit: from one score per completion to one advantage per token.

    N tokens, flat · C completions

Each credit rule is a frozen dataclass found by the name an objective declares (`credit = "gae"`).
Its fields stand beside the objective's in a recipe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Batch, Metric, mean_of
from truing.errors import UsageError, suggest
from truing.ops import discounted_deltas, explained_variance, kl_k1, segment_sum, whiten

Credited = tuple[list[Batch], dict[str, Metric]]


class Credit(ABC):
    """Turns the scores of a whole rollout into advantages and returns."""

    step_zero: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Metric -> (value, tolerance) that must hold for the first rollout."""

    @abstractmethod
    def __call__(self, batches: list[Batch]) -> Credited:
        """All batches of one rollout, with `advantages_N` and `returns_N` added, and metrics."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class GAE(Credit):
    """Generalised advantage estimation over a per-token reward that holds the KL penalty.

        k_t = log π_old(y_t) − log π_ref(y_t)
        R_t = −kl_coef · k_t + [t is the last real token] · score
        δ_t = R_t + γ V_{t+1} − V_t,   A_t = δ_t + γλ A_{t+1},   G_t = A_t + V_t

    V_t is the value of the state before token t; after the last token it is 0. Advantages are
    whitened after the returns are taken. Units: reward. Source: Schulman et al. 2016
    (arXiv 1506.02438), eq. 11-16; the KL in the reward: Ziegler et al. 2019 (arXiv 1909.08593),
    eq. 2. Departures: the score sits on the last real token, not on the padding after it.
    """

    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    """β: nats of drift cost this much reward. Larger stays closer; 0 turns the leash off."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    """γ: discount per token. Below 1, late rewards count less."""
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """λ: 1 trusts the sampled return (no bias), 0 trusts the value head (least variance)."""
    whiten_advantages: bool = True
    """Shift and scale advantages to mean 0 and deviation 1 over the whole rollout."""
    missing_eos_penalty: Annotated[float, Field(ge=0)] | None = None
    """Subtracted from the score of a completion that was cut before its stop token."""

    step_zero = {"objective/kl": (0.0, 1e-6)}

    def __call__(self, batches: list[Batch]) -> Credited:
        scores = [self._shaped_scores(batch) for batch in batches]
        advantages = [
            self._advantages(batch, shaped_C)
            for batch, shaped_C in zip(batches, scores, strict=True)
        ]
        returns = [
            advantages_N + batch["values_N"]
            for batch, advantages_N in zip(batches, advantages, strict=True)
        ]
        if self.whiten_advantages:
            whole = whiten(torch.cat(advantages))
            advantages = list(torch.split(whole, [batch.size_N for batch in batches]))
        credited = [
            batch.with_columns(advantages_N=advantages_N, returns_N=returns_N)
            for batch, advantages_N, returns_N in zip(batches, advantages, returns, strict=True)
        ]
        return credited, self._metrics(credited, scores)

    def _shaped_scores(self, batch: Batch) -> Tensor:
        """The score of each completion, less the penalty if it was cut."""
        scores_C = batch["scores_C"]
        if self.missing_eos_penalty is None:
            return scores_C
        return scores_C - self.missing_eos_penalty * (~batch["finished_C"]).to(scores_C.dtype)

    def _advantages(self, batch: Batch, shaped_C: Tensor) -> Tensor:
        rewards_N = -self.kl_coef * kl_k1(batch["sampled_logps_N"], batch["reference_logps_N"])
        rewards_N = rewards_N.index_add(0, batch.last_C, shaped_C.to(rewards_N.dtype))
        values_N = batch["values_N"]
        next_values_N = torch.cat([values_N[1:], values_N.new_zeros(1)])
        next_values_N[batch.last_C] = 0.0
        deltas_N = rewards_N + self.gamma * next_values_N - values_N
        return discounted_deltas(deltas_N, batch.lengths_C.tolist(), self.gamma * self.lam)

    def _metrics(self, batches: list[Batch], scores: list[Tensor]) -> dict[str, Metric]:
        def per_completion(of: Callable[[Batch], Tensor]) -> Tensor:
            return torch.cat([segment_sum(of(b), b.completion_N, b.size_C) for b in batches])

        kl_C = per_completion(lambda b: kl_k1(b["sampled_logps_N"], b["reference_logps_N"]))
        penalty_C = -self.kl_coef * kl_C
        finished_C = torch.cat([b["finished_C"] for b in batches])
        values_N = torch.cat([b["values_N"] for b in batches])
        returns_N = torch.cat([b["returns_N"] for b in batches])
        metrics = {
            "objective/kl": mean_of(kl_C),
            "objective/entropy": mean_of(per_completion(lambda b: -b["sampled_logps_N"])),
            "val/num_eos_tokens": Metric(finished_C.sum().float(), 1.0),
            "objective/scores": mean_of(torch.cat([b["scores_C"] for b in batches])),
            "objective/non_score_reward": mean_of(penalty_C),
            "objective/rlhf_reward": mean_of(torch.cat(scores) + penalty_C),
            "completions/clipped_ratio": mean_of((~finished_C).float()),
            "completions/mean_length": mean_of(torch.cat([b.lengths_C for b in batches]).float()),
        }
        if returns_N.numel() > 1 and float(returns_N.var()) > 0:
            metrics["val/explained_variance"] = mean_of(explained_variance(values_N, returns_N))
        return metrics


CREDITS: dict[str, type[Credit]] = {"gae": GAE}


def find(name: str) -> type[Credit]:
    """The credit rule called `name`. Raises UsageError with the valid names."""
    if name not in CREDITS:
        raise UsageError(f"unknown credit rule '{name}'", remedy=suggest(name, CREDITS))
    return CREDITS[name]
