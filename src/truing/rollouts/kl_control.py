"""How strong the KL penalty is from rollout to rollout: fixed, adaptive, or what a budget needs.

KL here is the mean over completions of Σ_t log π − log π_ref, in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

KLControl = Literal["fixed", "adaptive", "budget"]
ERROR_LIMIT = 0.2
"""Ziegler et al. clip the relative error of the KL to this."""
RAMP = 0.6
"""Share of the rollouts over which a budget is spent; the rest holds it."""
PROPORTIONAL, INTEGRAL = 2.0, 0.5
"""Answers of log β to a change of the error, and to the error itself, in units of the budget. The
KL of a rollout is a noisy reading, and the policy answers late: larger ones swing (ADR 028)."""
STRONGEST_PULL = 1.0
"""log β moves by no more than this from one rollout to the next."""


@dataclass(slots=True)
class KLController:
    """β of the next rollout from the KL of the last.

        fixed     β
        adaptive  β ← β (1 + clip(KL/target − 1, ±0.2) · n / horizon)      n completions
        budget    e = (KL − target · min(1, i / 0.6 I)) / target           rollout i of I
                  log β ← log β + 2 (e − e_before) + e / 2       by at most 1

    While only a critic learns nothing drifts, and β waits.
    adaptive: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2. budget is ours: a
    proportional-integral controller on the logarithm, which follows a ramp up to the target, so
    that a policy that starts at KL 0 is not driven beyond it. Raises nothing.
    """

    kind: KLControl
    value: float
    """β, reward per nat."""
    target: float = math.nan
    """Nats a completion."""
    horizon: int = 10_000
    """Completions over which `adaptive` answers."""
    rollouts: int = 1
    """Rollouts of the whole run: what the ramp is laid over."""
    seen: int = 0
    """Rollouts so far."""
    error: float = 0.0
    """e of the last rollout."""

    def update(self, kl: float, completions: int) -> None:
        """Learn the KL of a rollout that was drawn under the present β."""
        self.seen += 1
        if self.kind == "adaptive":
            error = max(-ERROR_LIMIT, min(ERROR_LIMIT, kl / self.target - 1))
            self.value *= 1 + error * completions / self.horizon
        elif self.kind == "budget":
            planned = min(1.0, self.seen / (RAMP * self.rollouts))
            error = kl / self.target - planned
            pull = PROPORTIONAL * (error - self.error) + INTEGRAL * error
            self.value *= math.exp(max(-STRONGEST_PULL, min(STRONGEST_PULL, pull)))
            self.error = error
