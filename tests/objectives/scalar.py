"""Scalar mathematics for the oracles: floats and loops, nothing shared with the package."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Tokens = list[list[float]]
"""One number per token, completion by completion."""


def softplus(x: float) -> float:
    """log(1 + e^x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def log_sigmoid(x: float) -> float:
    return -softplus(-x)


def sigmoid(x: float) -> float:
    return math.exp(log_sigmoid(x))


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def softmax(values: Sequence[float]) -> list[float]:
    return [math.exp(v) for v in log_softmax(values)]


def log_softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    norm = top + math.log(math.fsum(math.exp(v - top) for v in values))
    return [v - norm for v in values]


def bernoulli_kl(p: float, q: float) -> float:
    """KL((p, 1−p) ‖ (q, 1−q))."""
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def ppo_like(w: float, a: float, low: float, high: float, dual_clip: float | None = None) -> float:
    """The pessimistic of w and w clipped to 1 − low .. 1 + high; for a < 0 at most −dual_clip a."""
    loss = max(-a * w, -a * clip(w, 1 - low, 1 + high))
    return min(loss, -dual_clip * a) if dual_clip is not None and a < 0 else loss


def slopes(of: Callable[[Tokens], float], at: Tokens, h: float = 1e-4) -> list[float]:
    """∂f/∂x of every token by the five-point difference: exact to about h⁴. Keep 2h off kinks."""
    found = []
    for i, row in enumerate(at):
        for t in range(len(row)):
            moved = [[*r] for r in at]

            def value(by: float, i: int = i, t: int = t, moved: Tokens = moved) -> float:
                moved[i][t] = at[i][t] + by
                return of(moved)

            near, far = value(h) - value(-h), value(2 * h) - value(-2 * h)
            found.append((8 * near - far) / (12 * h))
    return found


@dataclass(frozen=True)
class Sentence:
    """A completion as the papers see it: its tokens' log-probs under policy and reference."""

    policy: list[float]
    reference: list[float]

    @property
    def length(self) -> int:
        return len(self.policy)

    @property
    def logp(self) -> float:
        return math.fsum(self.policy)

    @property
    def rho(self) -> float:
        """Log-ratio to the reference, summed."""
        return math.fsum(self.policy) - math.fsum(self.reference)

    @property
    def mean_logp(self) -> float:
        return self.logp / self.length

    @property
    def mean_rho(self) -> float:
        return self.rho / self.length
