"""Scores that compare: each completion against what an opponent says to the same prompt.

s own score, s_k those of the K completions of the opponent:

    bradley_terry   (1/K) Σ_k σ(s − s_k) − ½
    wins            (1/K) Σ_k [s > s_k] + ½ [s = s_k] − ½
    log_quantile    log F̂(s),   F̂ = (1 + Σ_k [s_k ≤ s]) / (1 + K)

The first two make the gradient E[∇log π(y) (P(y ≻ y') − ½)] of a game between the two: Nash-MD
when the opponent is the mixture of policy and reference. The last with the reference for an
opponent and a KL of weight 1/(n − 1) leads to Best-of-N of the reference (vBoN, and the backward
part of BOND): it reads nothing of the scores but their order.

Sources: Munos et al. 2023, "Nash Learning from Human Feedback" (arXiv 2312.00886), section 7;
Amini et al. 2024, "Variational Best-of-N Alignment" (arXiv 2407.06057), section 4; Sessa et al.
2024, "BOND: Aligning LLMs with Best-of-N Distillation" (arXiv 2407.14622), section 4. Departure:
F̂ counts the completion itself among the samples, so its log is never −∞.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from truing.groups import TokenGroup
from truing.rewards.base import Scores

Compared = Literal["bradley_terry", "wins", "log_quantile"]


@dataclass(frozen=True, slots=True)
class Against:
    """A scorer made of a scorer, and of an opponent who answers the same prompts."""

    score: Callable[[Sequence[TokenGroup]], Scores]
    draw: Callable[[Sequence[TokenGroup], int], list[TokenGroup]]
    """Prompts and a seed -> groups with the opponent's completions."""
    compared: Compared
    seed: int

    def __call__(self, groups: Sequence[TokenGroup]) -> Scores:
        """One compared score per completion; unscored ones stay so, and those without an opponent
        that has a score are (`no opponent`). The plain scores are parts."""
        met = [
            replace(group, completions=group.completions + theirs.completions)
            for group, theirs in zip(groups, self.draw(groups, self._seed(groups)), strict=True)
        ]
        found = self.score(met)
        values: list[float | None] = []
        reasons: list[str | None] = []
        parts: dict[str, list[float | None]] = {"plain": [], "opponent": []}
        at = 0
        for group, both in zip(groups, met, strict=True):
            scored = found.values[at : at + len(both.completions)]
            why = found.reasons[at : at + len(both.completions)] or [None] * len(scored)
            at += len(both.completions)
            number = len(group.completions)
            rivals = [score for score in scored[number:] if score is not None]
            parts["opponent"] += scored[number:]
            parts["plain"] += scored[:number]
            for score, reason in zip(scored[:number], why[:number], strict=True):
                lost = score is None or not rivals
                values.append(None if score is None or lost else self._of(score, rivals))
                reasons.append((reason if score is None else "no opponent") if lost else None)
        return Scores.of(values, reasons, parts)

    def _of(self, score: float, rivals: Sequence[float]) -> float:
        if self.compared == "log_quantile":
            beaten = sum(rival <= score for rival in rivals)
            return math.log((1 + beaten) / (1 + len(rivals)))
        if self.compared == "wins":
            won = [(score > rival) + 0.5 * (score == rival) for rival in rivals]
        else:
            won = [_sigmoid(score - rival) for rival in rivals]
        return sum(won) / len(won) - 0.5

    def _seed(self, groups: Sequence[TokenGroup]) -> int:
        """Another for every rollout, and the same for the same rollout: nothing is to be kept."""
        drawn = tuple(completion.ids for group in groups for completion in group.completions)
        return hash((self.seed, drawn)) & 0x7FFFFFFF


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))
