"""Direct preference optimisation.

    ρ(y) = log π(y|x) − log π_ref(y|x)     summed over the completion's tokens
    L    = −(1/P) Σ_pairs log σ( β (ρ(chosen) − ρ(rejected)) )

Source: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7. At the reference the loss is ln 2.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.batch import Batch, Loss, Outputs, mean_of
from truing.objectives.base import KNOBS, Objective
from truing.ops import segment_sum


def dpo_loss(chosen_ratio_P: Tensor, rejected_ratio_P: Tensor, beta: float) -> Tensor:
    """−log σ(β (ρ_chosen − ρ_rejected)) per pair, from summed log-ratios. Shape [P]."""
    return -logsigmoid(beta * (chosen_ratio_P - rejected_ratio_P))


@dataclass(frozen=True, config=KNOBS)
class DPO(Objective):
    """The preference loss whose implicit reward is β times the log-ratio to the reference.

    Shapes: logps_N and reference_logps_N in nats. Raises nothing of its own. Departures: none;
    log-probs are summed, not averaged, so long completions weigh more.
    """

    beta: Annotated[float, Field(gt=0)] = 0.1
    """β > 0: larger stays closer to the reference. 0.1 in the paper, 0.01-0.5 in use."""

    trains = "policy"
    unit = "pairs"
    needs = frozenset({"chosen_G", "rejected_G", "reference_logps_N"})
    step_zero = {"loss": (math.log(2), 1e-5), "rewards/margins": (0.0, 1e-5)}

    def __call__(self, batch: Batch, outputs: Outputs) -> Loss:
        assert outputs.logps_N is not None
        ratio_N = outputs.logps_N - batch["reference_logps_N"]
        ratio_C = segment_sum(ratio_N, batch.completion_N, batch.size_C)
        logps_C = segment_sum(outputs.logps_N.detach(), batch.completion_N, batch.size_C)
        chosen_P, rejected_P = batch["chosen_G"], batch["rejected_G"]
        loss_P = dpo_loss(ratio_C[chosen_P], ratio_C[rejected_P], self.beta)
        reward_C = self.beta * ratio_C.detach()
        margin_P = reward_C[chosen_P] - reward_C[rejected_P]
        metrics = {
            "loss": mean_of(loss_P),
            "rewards/chosen": mean_of(reward_C[chosen_P]),
            "rewards/rejected": mean_of(reward_C[rejected_P]),
            "rewards/margins": mean_of(margin_P),
            "rewards/accuracies": mean_of((margin_P > 0).float()),
            "logps/chosen": mean_of(logps_C[chosen_P]),
            "logps/rejected": mean_of(logps_C[rejected_P]),
        }
        return Loss(loss_P.sum(), float(loss_P.numel()), metrics)
