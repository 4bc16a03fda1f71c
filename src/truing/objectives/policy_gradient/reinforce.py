"""REINFORCE: raise the log-probability of what did better than the baseline.

    L = −(1/N) Σ_n A_n log π(y_n | x, y_<n)        N = predicted tokens of the whole step

A comes from the credit rule `group`, by default score minus the rollout's mean; the preset `remax`
takes the score of the greedy completion instead. `sequence_sum` is the exact policy gradient of the
expected return; `token` is that over the mean length of the step.

Gradient: −A ∇log π, whatever the ratio to the sampling policy is: nothing saturates, and nothing
corrects for an old sample, so take one step per rollout.
Implementations: OpenRLHF's `reinforce` puts PPO's clip around it (here: the preset `reinforce_pp`);
ReMax and Ahmadian et al. use this plain form, summed over each completion.
Source: Williams 1992, "Simple Statistical Gradient-Following Algorithms for Connectionist
Reinforcement Learning" (Machine Learning 8); Ahmadian et al. 2024, "Back to Basics: Revisiting
REINFORCE Style Optimization for Learning from Human Feedback in LLMs" (arXiv 2402.14740), eq. 7.

    >>> worked(Reinforce())
    -0.1
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Batch, Metric
from truing.objectives.base import KNOBS
from truing.objectives.policy_gradient._base import TokenPolicyGradient
from truing.objectives.policy_gradient._surrogates import Aggregation


@dataclass(frozen=True, config=KNOBS)
class Reinforce(TokenPolicyGradient):
    """Advantage-weighted log-likelihood of the policy's own samples.

    Shapes: everything over N; log-probs in nats at the sampling temperature. Raises nothing of
    its own. Departures: none.
    """

    aggregation: Aggregation = "token"
    """How tokens are averaged: over all tokens of the step, or over completions, each as its
    token mean (sequence), its sum (sequence_sum, the paper's), or sum / max_completion_length
    (constant)."""
    max_completion_length: Annotated[int, Field(gt=0)] = 64
    """What `constant` divides by: the stage's own limit. Larger makes every step smaller."""

    unit = "tokens"
    needs = frozenset({"advantages_N"})
    recipe_defaults = {"baseline": "batch", "scale_rewards": "none"}
    step_zero = {}

    def token_losses(self, batch: Batch, logps_N: Tensor) -> tuple[Tensor, dict[str, Metric]]:
        return -batch["advantages_N"] * logps_N, {}
