"""Proximal policy optimisation: the clipped surrogate, with a clipped value loss.

    w_n = π(y_n) / π_old(y_n)
    L_π = (1/N) Σ_n max( −A_n w_n, −A_n clip(w_n, 1−ε, 1+ε) )        at most −c A_n where A_n < 0
    L_V = (1/N) Σ_n ½ max( (V_n − G_n)², (clip(V_n, V_old,n ± ε_V) − G_n)² )
    L   = L_π + c_V L_V − c_H (1/N) Σ_n H_n − γ (1/M) Σ_m log π(demonstration token m)

Advantages A and returns G come from the credit rule `gae`, where the KL penalty sits in the
per-token reward. Demonstrations stand beside the rollout and feel only the last term (PPO-ptx).

Gradient: at w = 1 it is −A ∇log π. The clip ends the pull of a token that has moved ε the way A
asked; one that went the other way is pulled back, without bound if A < 0 and there is no dual clip.
Implementations: ε_V: 0.2 (lm-human-preferences, TRL's old PPO) or 0.5 (OpenRLHF, verl; c = 3).
Source: Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (arXiv 1707.06347), eq. 7
and 9; value clip and ½: Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences"
(arXiv 1909.08593), its code; dual clip: Ye et al. 2019, "Mastering Complex Control in MOBA Games
with Deep Reinforcement Learning" (arXiv 1912.09729), eq. 5; ptx: Ouyang et al. 2022, "Training
language models to follow instructions with human feedback" (arXiv 2203.02155), eq. 2.

    >>> worked(PPO())
    0.111108
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Batch, Loss, Metric, Outputs, mean_of
from truing.objectives.base import KNOBS, Objective, WholeStep
from truing.objectives.policy_gradient._surrogates import (
    clipped_surrogate,
    clipped_value_loss,
    ratio_metrics,
    ratio_of,
)


@dataclass(frozen=True, config=KNOBS)
class PPO(Objective):
    """The clipped surrogate and the clipped value loss, both averaged over all rollout tokens.

    Shapes: everything over N; log-probs in nats at the sampling temperature. Raises nothing itself.
    Departures: log-ratios are cut at ±20 inside exp; ptx is a mean over demonstration tokens.
    """

    cliprange: Annotated[float, Field(gt=0)] = 0.2
    """ε: how far the ratio may move before its gradient is cut. 0.2 in the paper."""
    cliprange_value: Annotated[float, Field(gt=0)] | None = 0.2
    """ε_V: the same for values, in reward units; null turns it off."""
    vf_coef: Annotated[float, Field(ge=0)] = 0.1
    """c_V: weight of the value loss. 0.1 in Ziegler et al."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """c: where A < 0 the loss is at most −c A. Larger cuts less; null: off. 3 in Ye et al."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """c_H: weight of the entropy bonus. Larger keeps more choices open; 0.01 in Schulman et al."""
    ptx_coef: Annotated[float, Field(ge=0)] = 0.0
    """γ: weight of the likelihood of demonstrations. Larger forgets less; 27.8 in InstructGPT."""

    trains = "policy+value"
    unit = "tokens"
    needs = frozenset({"sampled_logps_N", "advantages_N", "returns_N", "values_N"})
    prepared = frozenset({"demonstration_scale"})
    credit = "gae"
    step_zero = {"val/ratio": (1.0, 0.0), "policy/clipfrac_avg": (0.0, 0.0)}

    @property
    def required(self) -> frozenset[str]:
        return self.needs | ({"demonstration_C", *self.prepared} if self.ptx_coef else set())

    def weigh(self, batch: Batch) -> float:
        return float(batch.size_N - int(self._demonstrated(batch).sum()))

    def prepare(self, step: WholeStep) -> list[Batch]:
        # with this factor the step's one division makes a mean of the demonstrations' sum too
        demonstrated = sum(int(self._demonstrated(batch).sum()) for batch in step.batches)
        scale = sum(map(self.weigh, step.batches)) / max(demonstrated, 1)
        return [
            batch.with_columns(demonstration_scale=batch["sampled_logps_N"].new_tensor(scale))
            for batch in step.batches
        ]

    def __call__(self, batch: Batch, outputs: Outputs) -> Loss:
        assert outputs.logps_N is not None
        assert outputs.values_N is not None
        mine_N = ~self._demonstrated(batch)
        log_ratio_N = (outputs.logps_N - batch["sampled_logps_N"])[mine_N]
        ratio_N, advantages_N = ratio_of(log_ratio_N), batch["advantages_N"][mine_N]
        policy_N = clipped_surrogate(ratio_N, advantages_N, self.cliprange, None, self.dual_clip)
        values_N, old_values_N = outputs.values_N[mine_N], batch["values_N"][mine_N]
        returns_N, limit = batch["returns_N"][mine_N], self.cliprange_value
        value_N = clipped_value_loss(values_N, old_values_N, returns_N, limit)
        moved_N = (values_N - old_values_N).abs() > (limit or torch.inf)
        total = (policy_N + self.vf_coef * value_N).sum()
        metrics = ratio_metrics(ratio_N, log_ratio_N) | {
            "loss/policy_avg": mean_of(policy_N),
            "loss/value_avg": mean_of(value_N),
            "policy/clipfrac_avg": mean_of((policy_N != -advantages_N * ratio_N).float()),
            "val/clipfrac_avg": mean_of(moved_N.float()),
        }
        if self.ptx_coef:
            nll = -outputs.logps_N[~mine_N]
            total = total + self.ptx_coef * batch["demonstration_scale"] * nll.sum()
            metrics["loss/ptx_avg"] = mean_of(nll)
        if outputs.entropy_N is not None:
            metrics["policy/entropy_avg"] = mean_of(outputs.entropy_N[mine_N])
            if self.entropy_coef:
                total = total - self.entropy_coef * outputs.entropy_N[mine_N].sum()
        metrics["loss"] = Metric(total.detach().float(), self.weigh(batch))
        return Loss(total, self.weigh(batch), metrics)

    def _demonstrated(self, batch: Batch) -> Tensor:
        """Which tokens belong to demonstrations: none without ptx_coef."""
        if not self.ptx_coef:
            return torch.zeros_like(batch.completion_N, dtype=torch.bool)
        return batch["demonstration_C"][batch.completion_N]
