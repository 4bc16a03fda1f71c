"""Proximal policy optimisation, the clipped form, with a clipped value loss.

    w_n = π(y_n) / π_old(y_n)
    L_π = (1/N) Σ_n max( −A_n w_n, −A_n clip(w_n, 1−ε, 1+ε) )
    L_V = (1/N) Σ_n ½ max( (V_n − G_n)², (clip(V_n, V_old,n ± ε_V) − G_n)² )
    L   = L_π + c_V L_V

Advantages A and returns G come from the credit rule `gae`, where the KL penalty sits in the
per-token reward. Source: Schulman et al. 2017 (arXiv 1707.06347), eq. 7 and 9; value clipping
and ½ as in openai/lm-human-preferences (Ziegler et al. 2019, arXiv 1909.08593).
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Batch, Loss, Outputs, extreme_of, mean_of
from truing.objectives.base import KNOBS, Objective
from truing.ops import EXP_LIMIT


def clipped_surrogate(ratio_N: Tensor, advantages_N: Tensor, epsilon: float) -> Tensor:
    """max(−A w, −A clip(w, 1±ε)) per token: no incentive to move further outside the range."""
    unclipped_N = -advantages_N * ratio_N
    clipped_N = -advantages_N * ratio_N.clamp(1 - epsilon, 1 + epsilon)
    return torch.maximum(unclipped_N, clipped_N)


def clipped_value_loss(
    values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, epsilon: float | None
) -> Tensor:
    """½ max of the squared errors of V and of V clipped to V_old ± ε; no clipping if None."""
    error_N = (values_N - returns_N).square()
    if epsilon is not None:
        near_N = old_values_N + (values_N - old_values_N).clamp(-epsilon, epsilon)
        error_N = torch.maximum(error_N, (near_N - returns_N).square())
    return error_N / 2


@dataclass(frozen=True, config=KNOBS)
class PPO(Objective):
    """The clipped surrogate and the clipped value loss, both averaged over all tokens.

    Shapes: everything over N; log-probs in nats at the sampling temperature. Raises nothing of
    its own. Departures: log-ratios are clamped to ±20 inside exp, which only an exploded policy
    reaches.
    """

    cliprange: Annotated[float, Field(gt=0)] = 0.2
    """ε: how far the ratio may move before its gradient is cut. 0.2 in the paper."""
    cliprange_value: Annotated[float, Field(gt=0)] | None = 0.2
    """ε_V: the same for values, in reward units; null turns it off."""
    vf_coef: Annotated[float, Field(ge=0)] = 0.1
    """c_V: weight of the value loss. 0.1 in Ziegler et al."""

    trains = "policy+value"
    unit = "tokens"
    needs = frozenset({"sampled_logps_N", "advantages_N", "returns_N", "values_N"})
    credit = "gae"
    step_zero = {"val/ratio": (1.0, 0.0), "policy/clipfrac_avg": (0.0, 0.0)}

    def __call__(self, batch: Batch, outputs: Outputs) -> Loss:
        assert outputs.logps_N is not None
        assert outputs.values_N is not None
        log_ratio_N = outputs.logps_N - batch["sampled_logps_N"]
        ratio_N = log_ratio_N.clamp(-EXP_LIMIT, EXP_LIMIT).exp()
        policy_N = clipped_surrogate(ratio_N, batch["advantages_N"], self.cliprange)
        value_N = clipped_value_loss(
            outputs.values_N, batch["values_N"], batch["returns_N"], self.cliprange_value
        )
        loss_N = policy_N + self.vf_coef * value_N
        unclipped_N = -batch["advantages_N"] * ratio_N
        moved_N = (outputs.values_N - batch["values_N"]).abs()
        limit = self.cliprange_value or torch.inf
        metrics = {
            "loss": mean_of(loss_N),
            "loss/policy_avg": mean_of(policy_N),
            "loss/value_avg": mean_of(value_N),
            "policy/approxkl_avg": mean_of(log_ratio_N.square() / 2),
            "policy/clipfrac_avg": mean_of((policy_N > unclipped_N).float()),
            "val/clipfrac_avg": mean_of((moved_N > limit).float()),
            "val/ratio": mean_of(ratio_N),
            "val/ratio_max": extreme_of(ratio_N, "max"),
        }
        if outputs.entropy_N is not None:
            metrics["policy/entropy_avg"] = mean_of(outputs.entropy_N)
        return Loss(loss_N.sum(), float(batch.size_N), metrics)
