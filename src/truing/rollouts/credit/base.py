"""What every credit rule is, and what all of them measure.

N tokens, flat · C completions
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Self

import torch
from pydantic import ConfigDict
from torch import Tensor

from truing.batch import Batch, Metric, mean_of
from truing.ops import kl_k1, segment_sum

KNOBS = ConfigDict(extra="forbid", use_attribute_docstrings=True)
Credited = tuple[list[Batch], dict[str, Metric]]


class Credit(ABC):
    """Turns the scores of a whole rollout into advantages (and returns, with a critic).

    A rule sees every batch of the rollout at once, and a group is never cut in two: baselines
    and whitening do not depend on micro-batches.
    """

    step_zero: ClassVar[Mapping[str, tuple[float, float]]] = {"objective/kl": (0.0, 1e-6)}
    """Metric -> (value, tolerance) that must hold for the first rollout."""

    kl_coef: float
    """β of the KL penalty in the reward; a controller may replace it from rollout to rollout."""

    def with_kl_coef(self, value: float) -> Self:
        """The same rule with another β."""
        return dataclasses.replace(self, kl_coef=value)  # type: ignore[type-var]

    @property
    def wants_greedy(self) -> bool:
        """Whether it reads `baseline_C`, the score of each prompt's greedy completion."""
        return False

    @abstractmethod
    def __call__(self, batches: list[Batch]) -> Credited:
        """All batches of one rollout with `advantages_N` added, and what was measured."""


def conditioned(batch: Batch, missing_eos_penalty: float | None, clip: float | None) -> Tensor:
    """The score of each completion, less the penalty if it was cut before its stop token, then
    clipped to ±clip. Shape [C]."""
    scores_C = batch["scores_C"]
    if missing_eos_penalty is not None:
        scores_C = scores_C - missing_eos_penalty * (~batch["finished_C"]).to(scores_C.dtype)
    return scores_C if clip is None else scores_C.clamp(-clip, clip)


def drift(batch: Batch) -> Tensor:
    """k1 of every token: log π_old − log π_ref, nats. Shape [N]."""
    return kl_k1(batch["sampled_logps_N"], batch["reference_logps_N"])


def rollout_metrics(
    batches: Sequence[Batch], shaped: Sequence[Tensor], kl_coef: float
) -> dict[str, Metric]:
    """What a rollout is, whatever the rule: rewards, KL, entropy, lengths, stops."""

    def per_completion(of: Callable[[Batch], Tensor]) -> Tensor:
        return torch.cat([segment_sum(of(b), b.completion_N, b.size_C) for b in batches])

    kl_C = per_completion(drift)
    finished_C = torch.cat([b["finished_C"] for b in batches])
    return {
        "objective/kl": mean_of(kl_C),
        "objective/entropy": mean_of(per_completion(lambda b: -b["sampled_logps_N"])),
        "val/num_eos_tokens": Metric(finished_C.sum().float(), 1.0),
        "objective/scores": mean_of(torch.cat([b["scores_C"] for b in batches])),
        "objective/non_score_reward": mean_of(-kl_coef * kl_C),
        "objective/rlhf_reward": mean_of(torch.cat(list(shaped)) - kl_coef * kl_C),
        "completions/clipped_ratio": mean_of((~finished_C).float()),
        "completions/mean_length": mean_of(torch.cat([b.lengths_C for b in batches]).float()),
    }
