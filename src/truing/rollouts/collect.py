"""One rollout: prompts in, credited minibatches out.

    sample -> score (-> sample more) -> pack -> log-probs and values, reference -> credit

Policy numbers come from the trainer's own forward pass on the very micro-batches that are
trained on, not from the sampler, so the first ratio of every rollout is exactly 1.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from truing.batch import Batch, Metric, combine, extreme_of, mean_of
from truing.data.loader import Supply
from truing.data.packing import micro_batches, pack
from truing.errors import NumericsError, RolloutError
from truing.groups import TokenGroup
from truing.rewards.base import Scores
from truing.rollouts.correction import ImportanceCorrection, importance_weights
from truing.rollouts.credit.base import Credit, Credited
from truing.rollouts.kl_control import KLController
from truing.rollouts.normalize import ScoreNormalizer

CONTROL = ("value", "seen", "error")
"""What a KL controller learns from rollouts."""
Scorer = Callable[[Sequence[TokenGroup]], Scores]
"""Groups -> a score, or why there is none, for each of their completions in order."""


@dataclass(slots=True)
class Rollout:
    """What one rollout leaves: minibatches of micro-batches, its metrics, its groups."""

    minibatches: list[list[Batch]]
    metrics: dict[str, float]
    groups: list[TokenGroup]


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
    kl_controller: KLController | None = None
    """β of the next rollout's credit; None: the rule's own `kl_coef` throughout."""
    importance_correction: ImportanceCorrection = "none"
    """What is done where the sampler's probabilities are not the trainer's."""
    importance_cap: float = 3.0
    logp_difference_limit: float | None = None
    """Mean |log-prob by the trainer − by the sampler| beyond which the run stops; None: never."""
    collected: int = 0
    """Rollouts so far."""
    critic_rollouts: int = 0
    """So many of the first ones teach the critic alone."""
    fit_critic: Callable[[float, float], None] | None = None
    """Told once, when the scale of the scores is known: its mean and its deviation."""
    demonstrations: Supply[TokenGroup] | None = None
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
        if self.collected == 1 and self.fit_critic is not None:
            self.fit_critic(self.normalize.shift, self.normalize.deviation)
        if not groups:  # every prompt is solved, or hopeless: nothing to learn, nothing to lose
            return Rollout([], combine([facts]), [])
        parts = self._minibatches(groups, seed)
        flat = [self._measured(micro) for part in parts for micro in part]
        mismatch = self._mismatch(flat)
        for name in ("scores_C", *(["baseline_C"] if self.credit.wants_greedy else [])):
            flat = [b.with_columns(**{name: self.normalize.apply(b[name])}) for b in flat]
        credited, metrics = self._credited(flat)
        credited, measured = self._corrected(credited)
        metrics |= measured | mismatch | facts
        remaining = map(self._as_trained, flat, credited)
        minibatches = [[b for _ in part if (b := next(remaining)).size_C] for part in parts]
        filled = [self._beside(part) for part in minibatches if part]
        return Rollout(filled, combine([metrics]), groups)

    def state(self) -> dict[str, Any]:
        """What changes from rollout to rollout, as JSON."""
        control = self.kl_controller
        return {
            "collected": self.collected,
            "normalize": asdict(self.normalize),
            "kl_controller": {} if control is None else {n: getattr(control, n) for n in CONTROL},
            "demonstrations": None if self.demonstrations is None else self.demonstrations.drawn,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.collected = saved["collected"]
        self.normalize = ScoreNormalizer(**saved["normalize"])
        for name, value in saved["kl_controller"].items():
            setattr(self.kl_controller, name, value)
        if self.demonstrations is not None:
            self.demonstrations.skip_to(saved["demonstrations"])

    def _scored_groups(
        self,
        prompts: Sequence[TokenGroup],
        seed: int,
        more: Callable[[], Sequence[TokenGroup]] | None,
    ) -> tuple[list[TokenGroup], dict[str, Metric]]:
        """Groups with scores, with dynamic sampling only those that differ; what the reward said.

        Source: DAPO (arXiv 2503.14476), section 3.2; judged by the reward's own scores.
        """
        said: list[Scores] = []
        groups = self._scored(self.draw(prompts, seed), said)
        if not self.dynamic_rounds or more is None:
            return groups, self._said(said)
        drawn, kept = len(groups), [g for g in groups if _differs(g)]
        for extra in range(1, self.dynamic_rounds + 1):
            if len(kept) >= len(prompts):
                break
            fresh = self._scored(self.draw(more(), hash((seed, extra)) & 0x7FFFFFFF), said)
            drawn += len(fresh)
            kept += [g for g in fresh if _differs(g)]
        if not kept and not self.collected:
            raise RolloutError(
                f"{drawn} groups were drawn and in each all scores are equal",
                where="dynamic_sampling",
                remedy="raise temperature or num_generations, or give prompts of other difficulty",
            )
        kept_fraction = Metric(torch.tensor(float(len(kept))), float(drawn))
        return kept[: len(prompts)], self._said(said) | {"dynamic/kept_fraction": kept_fraction}

    def _said(self, said: Sequence[Scores]) -> dict[str, Metric]:
        """The reward's own numbers, which people read, of all that was drawn: not normalised, and
        of what dynamic sampling leaves out, too."""
        values = [value for scores in said for value in scores.values if value is not None]
        return reward_metrics(said) | {"objective/scores": mean_of(torch.tensor(values))}

    def _scored(self, groups: list[TokenGroup], said: list[Scores]) -> list[TokenGroup]:
        """The groups with the reward's own scores, and the greedy baseline if it is wanted.

        A completion without a score leaves its group, and a group that has none left, or no
        baseline, is left out.
        """
        scores = self.score(groups)
        said.append(scores)
        remaining = iter(scores.values)
        groups = [with_scores(g, [next(remaining) for _ in g.completions]) for g in groups]
        groups = [group for group in groups if group.completions]
        self.normalize.fit(_raw_scores(groups))  # on what was drawn, not on what is kept
        if not self.credit.wants_greedy or not groups:
            return groups
        assert self.draw_greedy is not None
        baselines = self.score(self.draw_greedy(groups))
        return [
            replace(group, baseline=baseline)
            for group, baseline in zip(groups, baselines.values, strict=True)
            if baseline is not None
        ]

    def _minibatches(self, groups: list[TokenGroup], seed: int) -> list[list[list[TokenGroup]]]:
        """Shuffled into minibatches of `batch_size` completions, each in micro-batches."""
        shuffled = list(groups)
        random.Random(seed).shuffle(shuffled)
        per_group = max(len(group.completions) for group in groups)
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

    def _mismatch(self, batches: list[Batch]) -> dict[str, Metric]:
        """How far the sampler's own log-probs are from the trainer's. Raises RolloutError where
        they are those of another policy, or of other tokens; NumericsError where they are none."""
        gap_N = torch.cat([(b["sampled_logps_N"] - b["sampler_logps_N"]).abs() for b in batches])
        where, gap = f"rollout {self.collected}", float(gap_N.float().mean())
        if not math.isfinite(gap):
            raise NumericsError(
                f"sampling/logp_difference_mean is {gap}: a log-prob of the policy is not finite",
                where=where,
                remedy="lower learning_rate, or try dtype=float32; nothing was learnt from this "
                "rollout, and the checkpoints before it are whole",
            )
        limit = self.logp_difference_limit
        if limit is not None and gap > limit:
            raise RolloutError(
                f"the sampler's log-probs are {gap:.4g} nats a token from the trainer's on "
                f"the same completions, more than logp_difference_limit {limit:g}",
                where=where,
                remedy="the sampler has other weights than the trainer, or other tokens: see that "
                "it takes on the newest weights and that ids are not tokenised again; if its "
                "policy is meant to differ, raise logp_difference_limit and set "
                "importance_correction",
            )
        return {
            "sampling/logp_difference_mean": mean_of(gap_N),
            "sampling/logp_difference_max": extreme_of(gap_N, "max"),
        }

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

    def _credited(self, flat: list[Batch]) -> Credited:
        """Advantages under the present β; then the controller learns the KL they came with."""
        control = self.kl_controller
        if control is None:
            return self.credit(flat)
        credited, metrics = self.credit.with_kl_coef(control.value)(flat)
        metrics["objective/kl_coef"] = Metric(torch.tensor(control.value), 1.0)
        kl = metrics["objective/kl"]
        if self.collected > self.critic_rollouts:
            control.update(float(kl.total) / kl.weight, round(kl.weight))
        return credited, metrics

    def _corrected(self, batches: list[Batch]) -> Credited:
        """Advantages times the importance weights, and what those are."""
        kind, cap = self.importance_correction, self.importance_cap
        if kind == "none":
            return batches, {}
        weights = [importance_weights(batch, kind, cap) for batch in batches]
        corrected = [
            batch.with_columns(advantages_N=batch["advantages_N"] * weight_N)
            for batch, weight_N in zip(batches, weights, strict=True)
        ]
        whole_N = torch.cat(weights)
        return corrected, {
            "sampling/importance_mean": mean_of(whole_N),
            "sampling/importance_silenced": mean_of((whole_N == 0).float()),
        }


def _raw_scores(groups: Sequence[TokenGroup]) -> Tensor:
    return torch.tensor([score for group in groups for score in group.scores])


def _flags(batch: Batch, *, value: bool) -> Tensor:
    return torch.full((batch.size_C,), value, device=batch.group_C.device)


def _differs(group: TokenGroup) -> bool:
    """Whether the scores of a group say anything."""
    return len(set(group.scores)) > 1


def with_scores(group: TokenGroup, scores: list[float | None]) -> TokenGroup:
    """The group with the completions that have a score."""
    completions = tuple(
        replace(completion, score=score)
        for completion, score in zip(group.completions, scores, strict=True)
        if score is not None
    )
    return replace(group, completions=completions)


def reward_metrics(said: Sequence[Scores]) -> dict[str, Metric]:
    """What a reward is made of, and what it could not judge, over all draws of a rollout."""
    parts: dict[str, list[float]] = {}
    faults: Counter[str] = Counter()
    for scores in said:
        faults.update(scores.faults)
        for name, values in scores.parts.items():
            parts.setdefault(name, []).extend(v for v in values if v is not None)
    metrics: dict[str, Metric] = {}
    for name, numbers in parts.items():
        values_C = torch.tensor(numbers, dtype=torch.float64)
        metrics[f"rewards/{name}/mean"] = mean_of(values_C)
        if numbers:
            deviation = values_C.std(correction=0)
            metrics[f"rewards/{name}/std"] = Metric(deviation, 1.0)
    everything = float(sum(len(scores.values) for scores in said))
    return metrics | {
        f"rewards/unscored/{reason}": Metric(torch.tensor(float(count)), everything)
        for reason, count in faults.items()
    }
