"""Binary classifier optimisation: the implicit reward classifies single answers, good or bad.

    r̂(y) = β (log π(y|x) − log π_ref(y|x))
    L    = (1/C) Σ −λ_D log σ(r̂ − δ)       desirable
                   −λ_U log σ(−(r̂ − δ))    undesirable

δ is the mean of every r̂ seen so far, this step's included, detached. Cross-entropy of this
classifier bounds DPO's loss from above, and the shift δ makes the bound tighter.

Gradient: ∓λβ (1 − σ(±(r̂ − δ))): unlike KTO's it does not fade for answers judged wrongly.
Implementations: the paper takes the midpoint of the two sides' means, as a moving average; TRL's
former trainer took the running mean of all, LLaMA-Factory a micro-batch's mean as one sample; here
every answer counts once, and a checkpoint keeps the mean. Weights for undesirable answers to other
prompts (the paper's first version, TRL) are not part of it: use `undesirable_weight`.
Source: Jung et al. 2024, "Binary Classifier Optimization for Large Language Model Alignment"
(arXiv 2404.04656), section 4.2, eq. 8.

    >>> worked(BCO(beta=0.1))
    0.662385
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.batch import Batch, Metric, mean_of
from truing.objectives._gather import gather, hand_out, running_mean
from truing.objectives.base import KNOBS, WholeStep
from truing.objectives.unpaired._verdicts import VerdictObjective, Verdicts, agreement, ratios


def bco_loss(rewards_U: Tensor, desirable_U: Tensor, reward_shift: Tensor | float) -> Tensor:
    """−log σ(±(r̂ − δ)) per verdict, + where desirable. Shape [U]."""
    return -logsigmoid(agreement(rewards_U, desirable_U, reward_shift))


@dataclass(frozen=True, config=KNOBS)
class BCO(VerdictObjective):
    """Cross-entropy of a classifier whose logit is the implicit reward less its running mean.

    Shapes: logps_N and reference_logps_N in nats, label_C. Raises nothing of its own. Departures:
    no matching of prompt distributions.
    """

    beta: Annotated[float, Field(gt=0)] = 0.1
    """β > 0: larger stays closer to the reference. 0.1 in use."""
    desirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """λ_D > 0: weight of desirable answers; raise the one of the rarer kind. 1 in the paper."""
    undesirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """λ_U > 0: weight of undesirable answers. TRL estimates one per prompt, 0.5 to 10."""

    needs = VerdictObjective.needs | {"reward_shift"}
    prepared = frozenset({"reward_shift"})

    def prepare(self, step: WholeStep) -> list[Batch]:
        rewards_C = self.beta * gather(step, ratios)
        return hand_out(step.batches, reward_shift=running_mean(step, rewards_C))

    def verdict_losses(self, verdicts: Verdicts) -> Tensor:
        rewards_U = self.beta * verdicts.ratio_U
        return bco_loss(rewards_U, verdicts.desirable_U, verdicts.batch["reward_shift"])

    def more_metrics(self, verdicts: Verdicts) -> dict[str, Metric]:
        return {"rewards/shift": mean_of(verdicts.batch["reward_shift"])}
