"""Group relative policy optimisation: PPO's clip without a critic, the KL in the loss.

    w_n = π(y_n) / π_old(y_n),   d_n = log π(y_n) − log π_ref(y_n),   k3 = e^−d − 1 + d
    l_n = max( −A w, −A clip(w, 1 − ε, 1 + ε_high) ) + β w k3
    L   = (1/C) Σ_i (1/|y_i|) Σ_t (l_{i,t} − c_H H_{i,t})             aggregation: sequence

A is the score minus the mean of the prompt's group, over the group's deviation. Dividing by |y_i|
makes a wrong answer cheaper the longer it is, and dividing by the deviation favours prompts that
are nearly solved or nearly hopeless: the preset `dr_grpo` does neither, `dapo` averages over tokens
and widens the upper bound so that unlikely tokens can grow.

Gradient: at w = 1 it is −A ∇log π, plus β w d ∇log π from the KL: back to the reference in
proportion to the drift. The clip ends the pull of a token that has moved as far as A asked.
Implementations: the paper's k3 carries no w, and as a loss has the gradient of KL(π_ref‖π), the
other direction; weighted by w it is that of KL(π‖π_ref) whoever sampled (DeepSeek-V3.2; TRL's
use_bias_correction_kl, on in 1.16), our default. TRL and verl now average over tokens and leave
the KL out; verl sets dual clip 3.
Source: Shao et al. 2024, "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open
Language Models" (arXiv 2402.03300), eq. 3 and 4; the weight: DeepSeek-AI 2025, "DeepSeek-V3.2:
Pushing the Frontier of Open Large Language Models" (arXiv 2512.02556), eq. 7; dual clip: Ye et al.
2019, "Mastering Complex Control in MOBA Games with Deep Reinforcement Learning" (arXiv 1912.09729),
eq. 5.

    >>> worked(GRPO())
    -0.041805
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Batch, Loss, Metric, Outputs, mean_of
from truing.objectives.base import KNOBS
from truing.objectives.policy_gradient._base import TokenPolicyGradient
from truing.objectives.policy_gradient._surrogates import (
    Aggregation,
    KLEstimator,
    aggregate,
    clip_metrics,
    clipped_surrogate,
    kl_term,
    ratio_metrics,
    ratio_of,
)


@dataclass(frozen=True, config=KNOBS)
class GRPO(TokenPolicyGradient):
    """The clipped surrogate with group advantages and an optional KL term.

    Shapes: everything over N; log-probs in nats at the sampling temperature. Raises nothing of
    its own. Departures: the KL term is weighted by the ratio (`kl_estimator: k3` is the paper's).
    """

    epsilon: Annotated[float, Field(gt=0)] = 0.2
    """ε: how far the ratio may fall (and rise, without ε_high) before the gradient is cut. Larger
    allows more drift per rollout; 1 and more: no lower bound. 0.2 in PPO, 10 in R1."""
    epsilon_high: Annotated[float, Field(gt=0)] | None = None
    """ε_high: the upper bound, null: ε. Larger lets unlikely tokens grow; 0.28 in DAPO."""
    beta: Annotated[float, Field(ge=0)] = 0.04
    """β: weight of the KL term, per nat. Larger stays closer; 0: no such term (how far the
    policy went is measured all the same). 0.04 in the paper, 0.001 in R1."""
    kl_estimator: KLEstimator = "weighted_k3"
    """Which KL term: weighted_k3 pulls along ∇KL(π‖π_ref) from any sampling policy, k2 = d²/2 does
    in a rollout's first step, k3 (the paper's) pulls along ∇KL(π_ref‖π)."""
    aggregation: Aggregation = "sequence"
    """How tokens are averaged: over all tokens of the step, or over completions, each as its
    token mean (sequence, the paper's), its sum (sequence_sum), or sum / max_completion_length
    (constant)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """c: where A < 0 the loss is at most −c A, which ends the pull of exploded ratios. Larger cuts
    less; null: off. 3 in Ye et al."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """c_H: weight of an entropy bonus per token. Larger keeps more choices open; 0 in the paper."""
    max_completion_length: Annotated[int, Field(gt=0)] = 64
    """What `constant` divides by: the stage's own limit. Larger makes every step smaller."""

    @property
    def required(self) -> frozenset[str]:
        return self.needs | ({"reference_logps_N"} if self.beta else set())

    def __call__(self, batch: Batch, outputs: Outputs) -> Loss:
        loss = super().__call__(batch, outputs)
        if not self.entropy_coef:
            return loss
        assert outputs.entropy_N is not None
        where = (batch.completion_N, batch.size_C)
        bonus = aggregate(outputs.entropy_N, *where, self.aggregation, self.max_completion_length)
        total = loss.total - self.entropy_coef * bonus
        metrics = loss.metrics | {"loss": Metric(total.detach().float(), loss.weight)}
        return Loss(total, loss.weight, metrics)

    def token_losses(self, batch: Batch, logps_N: Tensor) -> tuple[Tensor, dict[str, Metric]]:
        advantages_N = batch["advantages_N"]
        log_ratio_N = logps_N - batch["sampled_logps_N"]
        ratio_N = ratio_of(log_ratio_N)
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        loss_N = clipped_surrogate(ratio_N, advantages_N, self.epsilon, high, self.dual_clip)
        metrics = ratio_metrics(ratio_N, log_ratio_N)
        metrics |= clip_metrics(ratio_N, advantages_N, 1 - self.epsilon, 1 + high)
        if self.beta:
            kl_N = kl_term(logps_N, batch["reference_logps_N"], ratio_N, self.kl_estimator)
            loss_N = loss_N + self.beta * kl_N
            metrics["kl"] = mean_of(kl_N)
        return loss_N, metrics
