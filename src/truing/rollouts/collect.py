"""One rollout: prompts in, credited minibatches out.

    sample -> pack -> policy log-probs and values -> reference log-probs -> scores -> credit

Policy numbers come from the trainer's own forward pass on the very micro-batches that are
trained on, not from the sampler, so the first ratio of every rollout is exactly 1.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from truing.batch import Batch, Metric, combine, extreme_of, mean_of
from truing.data.packing import micro_batches, pack
from truing.errors import NumericsError
from truing.groups import TokenGroup
from truing.rollouts.credit import Credit

Scorer = Callable[[Batch, Sequence[TokenGroup]], Tensor]
"""Batch and its groups -> scores_C."""


@dataclass(slots=True)
class Rollout:
    """What one rollout leaves: minibatches of micro-batches, its metrics, its groups."""

    minibatches: list[list[Batch]]
    metrics: dict[str, float]
    groups: list[TokenGroup]


@dataclass(slots=True)
class ScoreNormalizer:
    """(score − mean) / deviation over the first rollout, which the reference drew; then fixed.

    Source: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2: the reward has mean 0 and
    variance 1 on samples of the reference. Raises NumericsError for a constant reward.
    """

    enabled: bool
    mean: float = 0.0
    deviation: float = 1.0
    fitted: bool = False

    def __call__(self, scores: list[Tensor]) -> list[Tensor]:
        if not self.enabled:
            return scores
        if not self.fitted:
            whole = torch.cat(scores)
            self.mean, self.deviation = float(whole.mean()), float(whole.std())
            self.fitted = True
            if not self.deviation > 1e-6:
                raise NumericsError(
                    "the reward gives every completion of the first rollout the same score "
                    f"({self.mean:.4g})",
                    where="score_normalization: reference",
                    remedy="check the reward model: a constant reward teaches nothing",
                )
        return [(score_C - self.mean) / self.deviation for score_C in scores]


@dataclass(slots=True)
class Collector:
    """Makes rollouts out of prompts; every part is handed in by training/build.py."""

    draw: Callable[[Sequence[TokenGroup], int], list[TokenGroup]]
    """Prompts and a seed -> groups with sampled completions."""
    measure: Callable[[Batch], tuple[Tensor, Tensor]]
    """Batch -> (log-probs_N, values_N) of the policy, without gradient."""
    reference_logps: Callable[[Batch], Tensor]
    score: Scorer
    normalize: ScoreNormalizer
    credit: Credit
    batch_size: int
    micro_batch_tokens: int
    device: torch.device

    def collect(self, prompts: Sequence[TokenGroup], seed: int) -> Rollout:
        """Draw, measure, score and credit one rollout."""
        groups = self.draw(prompts, seed)
        parts = self._minibatches(groups, seed)
        measured = [[self._measured(micro) for micro in part] for part in parts]
        flat = [batch for part in measured for batch in part]
        micros = [micro for part in parts for micro in part]
        raw = [self.score(batch, micro) for batch, micro in zip(flat, micros, strict=True)]
        normalized = self.normalize(raw)
        flat = [b.with_columns(scores_C=s) for b, s in zip(flat, normalized, strict=True)]
        credited, metrics = self.credit(flat)
        metrics |= self._mismatch(credited, micros)
        # what a person reads is the reward's own number, not the normalised one
        metrics["objective/scores"] = mean_of(torch.cat(raw))
        remaining = iter(credited)
        minibatches = [[next(remaining) for _ in part] for part in parts]
        scored = [
            _with_scores(group, scores)
            for micro, score_C in zip(micros, raw, strict=True)
            for group, scores in _split_scores(micro, score_C)
        ]
        return Rollout(minibatches, combine([metrics]), scored)

    def _minibatches(self, groups: list[TokenGroup], seed: int) -> list[list[list[TokenGroup]]]:
        """Shuffled into minibatches of `batch_size` completions, each in micro-batches."""
        shuffled = list(groups)
        random.Random(seed).shuffle(shuffled)
        per_group = len(groups[0].completions)
        size = max(1, self.batch_size // per_group)
        return [
            micro_batches(shuffled[start : start + size], self.micro_batch_tokens)
            for start in range(0, len(shuffled), size)
        ]

    def _measured(self, micro: list[TokenGroup]) -> Batch:
        batch = pack(micro).to(self.device)
        logps_N, values_N = self.measure(batch)
        return batch.with_columns(
            sampled_logps_N=logps_N,
            values_N=values_N,
            reference_logps_N=self.reference_logps(batch),
        )

    def _mismatch(self, batches: list[Batch], micros: list[list[TokenGroup]]) -> dict[str, Metric]:
        """How far the sampler's own log-probs are from the trainer's."""
        drawn = [
            logp
            for micro in micros
            for group in micro
            for completion in group.completions
            for logp in completion.sampled_logps or ()
        ]
        trainer_N = torch.cat([batch["sampled_logps_N"] for batch in batches])
        gap_N = (trainer_N.cpu() - torch.tensor(drawn)).abs()
        return {
            "sampling/logp_difference_mean": mean_of(gap_N),
            "sampling/logp_difference_max": extreme_of(gap_N, "max"),
        }


def _split_scores(
    micro: Sequence[TokenGroup], score_C: Tensor
) -> list[tuple[TokenGroup, list[float]]]:
    parts = score_C.tolist()
    result = []
    for group in micro:
        count = len(group.completions)
        result.append((group, parts[:count]))
        parts = parts[count:]
    return result


def _with_scores(group: TokenGroup, scores: list[float]) -> TokenGroup:
    completions = tuple(
        replace(completion, score=score)
        for completion, score in zip(group.completions, scores, strict=True)
    )
    return replace(group, completions=completions)
