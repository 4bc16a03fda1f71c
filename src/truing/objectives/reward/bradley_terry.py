"""The Bradley-Terry reward model.

    d = r_chosen − r_rejected − c·margin
    p = 1, or the given probability that chosen is better;  then p ← (1−ε) p + ε (1−p)
    L = (1/P) Σ_pairs [ −p log σ(d) − (1−p) log σ(−d) + η (r_chosen + r_rejected)² ]

The reward is identified only up to a constant per prompt, so normalise it before it is optimised
(`score_normalization` of on-policy training); η > 0 picks one constant. Its scale follows the
annotators' consistency. With the true probabilities as p the minimiser is the true reward.

Gradient: (p − σ(d)) pulls chosen up and rejected down: nothing once σ(d) = p, at most p when lost.
Implementations: TRL and OpenRLHF agree on the plain form and treat pairs as independent, as here;
InstructGPT weighs all pairs of one ranking together (`ranking`). OpenRLHF's log(1 + exp(−d))
overflows and leaves the margin out; logsigmoid does neither.
Source: Ouyang et al. 2022, "Training language models to follow instructions with human feedback"
(arXiv 2203.02155), eq. 1; margin: Touvron et al. 2023, "Llama 2: Open Foundation and Fine-Tuned
Chat Models" (arXiv 2307.09288), eq. 2; centring: Eisenstein et al. 2023, "Helping or Herding?
Reward Model Ensembles Mitigate but do not Eliminate Reward Hacking" (arXiv 2312.09244), eq. 2;
label smoothing: Wang et al. 2024, "Secrets of RLHF in Large Language Models Part II: Reward
Modeling" (arXiv 2401.06080), eq. 5.

    >>> worked(BradleyTerry())
    0.341154
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.batch import Batch, Loss, Metric, Outputs, extreme_of, mean_of
from truing.objectives.base import KNOBS, Objective


def bradley_terry_loss(
    chosen_P: Tensor,
    rejected_P: Tensor,
    margin_P: Tensor | float = 0.0,
    probability_P: Tensor | float = 1.0,
) -> Tensor:
    """Cross-entropy of σ(r_chosen − r_rejected − margin) against the probability. Shape [P]."""
    d_P = chosen_P - rejected_P - margin_P
    return -probability_P * logsigmoid(d_P) - (1 - probability_P) * logsigmoid(-d_P)


@dataclass(frozen=True, config=KNOBS)
class BradleyTerry(Objective):
    """Cross-entropy of the score difference, averaged over pairs.

    Shapes: scores_C, any real number, read at the last real token. Raises nothing of its own.
    Departures: pairs are independent (InstructGPT weighs all pairs of one ranking together).
    """

    center_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """η ≥ 0: pulls r_chosen + r_rejected to 0, which makes the minimiser unique. 0.01 in the
    paper; larger also shrinks the differences."""
    margin_coef: Annotated[float, Field(ge=0)] = 0.0
    """c ≥ 0: how much of the rows' `margin` the scores must differ by; 0 reads none. 1 in Llama 2
    with margins 1, 2/3, 1/3, 0; larger separates clear pairs further."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """ε in [0, 1/2): how often annotators are taken to be wrong; σ(d) then stops at 1 − ε. 0 in
    InstructGPT, 0.1 in use."""
    soft_labels: bool = False
    """Whether p is the rows' `probability` instead of 1."""

    trains = "reward"
    unit = "pairs"
    needs = frozenset({"chosen_G", "rejected_G"})

    @property
    def required(self) -> frozenset[str]:
        switched = {"margin_G": self.margin_coef > 0, "probability_G": self.soft_labels}
        return self.needs | {name for name, on in switched.items() if on}

    def __call__(self, batch: Batch, outputs: Outputs) -> Loss:
        assert outputs.scores_C is not None
        chosen_P = outputs.scores_C[batch["chosen_G"]]
        rejected_P = outputs.scores_C[batch["rejected_G"]]
        margin_P = self.margin_coef * batch["margin_G"] if self.margin_coef > 0 else 0.0
        probability_P = batch["probability_G"] if self.soft_labels else 1.0
        smoothed_P = probability_P + self.label_smoothing * (1 - 2 * probability_P)
        loss_P = bradley_terry_loss(chosen_P, rejected_P, margin_P, smoothed_P)
        loss_P = loss_P + self.center_coefficient * (chosen_P + rejected_P).square()
        both = torch.cat([chosen_P, rejected_P])
        metrics: dict[str, Metric] = {
            "loss": mean_of(loss_P),
            "accuracy": mean_of((chosen_P > rejected_P).float()),
            "margin": mean_of(chosen_P - rejected_P),
            "mean_reward": mean_of(both),
        }
        if both.numel():  # nothing has no extremes
            metrics["min_reward"] = extreme_of(both, "min")
            metrics["max_reward"] = extreme_of(both, "max")
        return Loss(loss_P.sum(), self.weigh(batch), metrics)
