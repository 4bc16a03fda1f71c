"""Kahneman-Tversky optimisation: single answers, each called desirable or not.

    ρ(y) = log π(y|x) − log π_ref(y|x)
    z₀   = max(0, mean ρ of the step's mismatched completions)
    L    = (1/C) Σ λ_D (1 − σ(β(ρ − z₀)))     desirable
                 λ_U (1 − σ(β(z₀ − ρ)))       undesirable

A mismatched completion is another row's answer after this row's prompt; it only estimates
KL(π‖π_ref), the point from which gains and losses are judged, and is in neither sum nor count. A
step without any has z₀ = 0. No answer needs a rival. λ_D n_D / (λ_U n_U) should be 1 to 4/3.

Gradient: ∓λβ σ(1−σ): λβ/4 at the reference, and it fades on both sides, so that answers judged
clearly, right or wrong, hardly pull. z₀ is detached.
Implementations: TRL shifts the answers of a micro-batch by one row and takes z₀ from that alone
(then the mean of ranks), HALOs divides by the number of non-zero ones; here it is one mean over all
mismatched completions of the optimizer step, so cutting the step up changes nothing.
Source: Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization"
(arXiv 2402.01306), section 4.1, eq. 7 and 8.

    >>> worked(KTO(beta=0.1))
    0.484381
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Batch, Metric, Outputs, mean_of
from truing.objectives._gather import gather, hand_out
from truing.objectives.base import KNOBS, WholeStep
from truing.objectives.unpaired._verdicts import (
    VerdictObjective,
    Verdicts,
    agreement,
    ratios,
)


def kto_loss(
    ratio_U: Tensor, desirable_U: Tensor, kl_baseline: Tensor | float, beta: float
) -> Tensor:
    """1 − σ(±β(ρ − z₀)) per verdict, + where desirable. Shape [U]."""
    return (-beta * agreement(ratio_U, desirable_U, kl_baseline)).sigmoid()


@dataclass(frozen=True, config=KNOBS)
class KTO(VerdictObjective):
    """A saturating value of each answer's log-ratio, judged from the policy's present drift.

    Shapes: logps_N and reference_logps_N in nats, label_C and mismatched_C. Raises nothing of its
    own. Departures: none.
    """

    beta: Annotated[float, Field(gt=0)] = 0.1
    """β > 0: larger stays closer to the reference and saturates sooner. 0.1 in the paper."""
    desirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """λ_D > 0: weight of desirable answers; raise the one of the rarer kind. 1 in the paper."""
    undesirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """λ_U > 0: weight of undesirable answers; larger is more averse to losses. 1 in the paper."""

    needs = VerdictObjective.needs | {"mismatched_C", "kl_baseline"}
    prepared = frozenset({"kl_baseline"})

    def counted(self, batch: Batch) -> Tensor:
        return ~batch["mismatched_C"]

    def prepare(self, step: WholeStep) -> list[Batch]:
        def mismatched(batch: Batch, outputs: Outputs) -> Tensor:
            return ratios(batch, outputs)[batch["mismatched_C"]]

        drift = gather(step, mismatched)
        baseline = (drift.sum() / max(drift.numel(), 1)).clamp(min=0)
        return hand_out(step.batches, kl_baseline=baseline)

    def verdict_losses(self, verdicts: Verdicts) -> Tensor:
        kl_baseline = verdicts.batch["kl_baseline"]
        return kto_loss(verdicts.ratio_U, verdicts.desirable_U, kl_baseline, self.beta)

    def more_metrics(self, verdicts: Verdicts) -> dict[str, Metric]:
        return {"kl": mean_of(verdicts.batch["kl_baseline"])}
