"""The Bradley-Terry reward model.

    L = −(1/P) Σ_pairs [ log σ(r_chosen − r_rejected) − η (r_chosen + r_rejected)² ]

Source: InstructGPT (arXiv 2203.02155), eq. 1; the centring term: Eisenstein et al. 2023
(arXiv 2312.09244), section 2. The reward is identified only up to a constant per prompt, so
normalise it before it is optimised (`score_normalization` of on-policy training).
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


def bradley_terry_loss(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """−log σ(r_chosen − r_rejected) per pair; ln 2 where the scores are equal. Shape [P]."""
    return -logsigmoid(chosen_P - rejected_P)


@dataclass(frozen=True, config=KNOBS)
class BradleyTerry(Objective):
    """−log σ of the score difference, averaged over pairs.

    Shapes: scores_C, any real number, read at the last real token. Raises nothing of its own.
    Departures: pairs are independent (InstructGPT weights all pairs of one ranking together).
    """

    center_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """η ≥ 0: pulls r_chosen + r_rejected to 0, which makes the minimiser unique. 0.01 in the
    paper; larger also shrinks the differences."""

    trains = "reward"
    unit = "pairs"
    needs = frozenset({"chosen_G", "rejected_G"})

    def __call__(self, batch: Batch, outputs: Outputs) -> Loss:
        assert outputs.scores_C is not None
        chosen_P = outputs.scores_C[batch["chosen_G"]]
        rejected_P = outputs.scores_C[batch["rejected_G"]]
        margin_P = chosen_P - rejected_P
        loss_P = bradley_terry_loss(chosen_P, rejected_P)
        loss_P = loss_P + self.center_coefficient * (chosen_P + rejected_P).square()
        both = torch.cat([chosen_P, rejected_P])
        metrics: dict[str, Metric] = {
            "loss": mean_of(loss_P),
            "accuracy": mean_of((margin_P > 0).float()),
            "margin": mean_of(margin_P),
            "min_reward": extreme_of(both, "min"),
            "mean_reward": mean_of(both),
            "max_reward": extreme_of(both, "max"),
        }
        return Loss(loss_P.sum(), float(loss_P.numel()), metrics)
