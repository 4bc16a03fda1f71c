"""One rollout: prompts in, credited minibatches out.

    sample -> score (-> sample more) -> pack -> log-probs and values, reference -> credit

Policy numbers come from the trainer's own forward pass on the very micro-batches that are
trained on, not from the sampler, so the first ratio of every rollout is exactly 1.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from truing.batch import Batch, Metric, combine, extreme_of, mean_of
from truing.data.packing import micro_batches, pack
from truing.errors import NumericsError, RolloutError
from truing.groups import TokenGroup
from truing.rollouts.credit.base import Credit

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
        self.fit(torch.cat(scores))
        return [self.apply(score_C) for score_C in scores]

    def fit(self, whole: Tensor) -> None:
        """Take mean and deviation from the first scores there are; later ones change nothing."""
        if self.enabled and not self.fitted:
            self.mean, self.deviation = float(whole.mean()), float(whole.std())
            self.fitted = True
            if not self.deviation > 1e-6:
                raise NumericsError(
                    "the reward gives every completion of the first rollout the same score "
                    f"({self.mean:.4g})",
                    where="score_normalization: reference",
                    remedy="check the reward model: a constant reward teaches nothing",
                )

    def apply(self, score_C: Tensor) -> Tensor:
        """The same shift and scale for other scores of this reward (a greedy baseline's)."""
        return (score_C - self.mean) / self.deviation if self.enabled else score_C


@dataclass(slots=True)
class Collector:
    """Makes rollouts out of prompts; every part is handed in by training/on_policy.py."""

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
    place: Callable[[Batch], Batch]
    """Puts a batch where it is computed, with what all passes over it have in common."""
    draw_greedy: Callable[[Sequence[TokenGroup]], list[TokenGroup]] | None = None
    """Prompts -> groups with the one greedy completion, for rules that want it as a baseline."""
    dynamic_rounds: int = 0
    """How often prompts are drawn again in place of groups whose scores are all equal."""
    collected: int = 0
    """Rollouts so far."""
    demonstrations: Iterator[list[TokenGroup]] | None = None
    """Demonstrations to stand beside each minibatch, for objectives that mix them in."""

    def collect(
        self,
        prompts: Sequence[TokenGroup],
        seed: int,
        more: Callable[[], Sequence[TokenGroup]] | None = None,
    ) -> Rollout:
        """Draw, score, measure and credit one rollout. `more` gives further prompts.

        Raises RolloutError when dynamic sampling finds no group whose scores differ.
        """
        groups, facts = self._scored_groups(prompts, seed, more)
        self.collected += 1
        if not groups:  # every prompt is solved, or hopeless: nothing to learn, nothing to lose
            return Rollout([], combine([facts]), [])
        parts = self._minibatches(groups, seed)
        flat = [self._measured(micro) for part in parts for micro in part]
        normalized = self.normalize([batch["scores_C"] for batch in flat])
        flat = [b.with_columns(scores_C=s) for b, s in zip(flat, normalized, strict=True)]
        if self.credit.wants_greedy:
            flat = [b.with_columns(baseline_C=self.normalize.apply(b["baseline_C"])) for b in flat]
        credited, metrics = self.credit(flat)
        micros = [micro for part in parts for micro in part]
        metrics |= facts | self._mismatch(flat, micros)
        # what a person reads is the reward's own number, not the normalised one
        metrics["objective/scores"] = mean_of(_raw_scores(groups))
        remaining = map(self._as_trained, flat, credited)
        minibatches = [[b for _ in part if (b := next(remaining)).size_C] for part in parts]
        filled = [self._beside(part) for part in minibatches if part]
        return Rollout(filled, combine([metrics]), groups)

    def _scored_groups(
        self,
        prompts: Sequence[TokenGroup],
        seed: int,
        more: Callable[[], Sequence[TokenGroup]] | None,
    ) -> tuple[list[TokenGroup], dict[str, Metric]]:
        """Groups with scores; with dynamic sampling only those whose scores differ.

        Source: DAPO (arXiv 2503.14476), section 3.2; judged by the reward's own scores.
        """
        groups = self._scored(self.draw(prompts, seed))
        if not self.dynamic_rounds or more is None:
            return groups, {}
        self.normalize.fit(_raw_scores(groups))  # on what the reference drew, not on what is kept
        drawn, kept = len(groups), [g for g in groups if _differs(g)]
        for extra in range(1, self.dynamic_rounds + 1):
            if len(kept) >= len(prompts):
                break
            fresh = self._scored(self.draw(more(), hash((seed, extra)) & 0x7FFFFFFF))
            drawn += len(fresh)
            kept += [g for g in fresh if _differs(g)]
        if not kept and not self.collected:
            raise RolloutError(
                f"{drawn} groups were drawn and in each all scores are equal",
                where="dynamic_sampling",
                remedy="raise temperature or num_generations, or give prompts of other difficulty",
            )
        facts = {"dynamic/kept_fraction": Metric(torch.tensor(float(len(kept))), float(drawn))}
        return kept[: len(prompts)], facts

    def _scored(self, groups: list[TokenGroup]) -> list[TokenGroup]:
        """The groups with the reward's own scores, and the greedy baseline if it is wanted."""
        scores = self._scores_of(groups)
        groups = [_with_scores(group, scores[id(group)]) for group in groups]
        if not self.credit.wants_greedy:
            return groups
        assert self.draw_greedy is not None
        greedy = self.draw_greedy(groups)
        found = self._scores_of(greedy)
        return [replace(g, baseline=found[id(b)][0]) for g, b in zip(groups, greedy, strict=True)]

    def _scores_of(self, groups: list[TokenGroup]) -> dict[int, list[float]]:
        """Scores of each group's completions, by the group's identity."""
        found: dict[int, list[float]] = {}
        for micro in micro_batches(groups, self.micro_batch_tokens):
            remaining = iter(self.score(pack(micro).to(self.device), micro).tolist())
            for group in micro:
                found[id(group)] = [next(remaining) for _ in group.completions]
        return found

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
        batch = self.place(pack(micro))
        logps_N, values_N = self.measure(batch)
        if self.credit.wants_greedy:
            baselines = [group.baseline for group in micro for _ in group.completions]
            batch = batch.with_columns(baseline_C=torch.tensor(baselines, device=self.device))
        return batch.with_columns(
            sampled_logps_N=logps_N,
            values_N=values_N,
            reference_logps_N=self.reference_logps(batch),
        )

    def _as_trained(self, before: Batch, after: Batch) -> Batch:
        """The batch as it will be trained on. Without some completions the same kernels may round
        otherwise, so log-probs are taken anew: the first ratio stays exactly 1."""
        if after.size_C in (0, before.size_C):
            return after
        return after.with_columns(sampled_logps_N=self.measure(after)[0])

    def _beside(self, minibatch: list[Batch]) -> list[Batch]:
        """The minibatch with demonstrations as further micro-batches, told apart by a column."""
        if self.demonstrations is None:
            return minibatch
        own = [b.with_columns(demonstration_C=_flags(b, value=False)) for b in minibatch]
        for micro in micro_batches(next(self.demonstrations), self.micro_batch_tokens):
            batch = pack(micro).to(self.device)
            blank_N = torch.zeros(batch.size_N, device=self.device)
            columns = {n: blank_N for n in minibatch[0].columns if n.endswith("_N")}
            columns["demonstration_C"] = _flags(batch, value=True)
            own.append(batch.with_columns(**columns))
        return own

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


def _raw_scores(groups: Sequence[TokenGroup]) -> Tensor:
    return torch.tensor([score for group in groups for score in group.scores])


def _flags(batch: Batch, *, value: bool) -> Tensor:
    return torch.full((batch.size_C,), value, device=batch.group_C.device)


def _differs(group: TokenGroup) -> bool:
    """Whether the scores of a group say anything."""
    return len(set(group.scores)) > 1


def _with_scores(group: TokenGroup, scores: list[float]) -> TokenGroup:
    completions = tuple(
        replace(completion, score=score)
        for completion, score in zip(group.completions, scores, strict=True)
    )
    return replace(group, completions=completions)
