"""The stated point: one small batch on which every objective's value is documented.

One prompt, two completions of 2 and 3 tokens. The first is chosen, desirable and scored higher.
The reference drew the second, where that is asked for. Log-probs in nats:

                 chosen          rejected
    policy       −0.50 −1.00     −1.50 −0.25 −2.00
    reference    −0.75 −1.25     −1.00 −0.50 −1.50
    sampler      −0.40 −1.30     −1.20 −0.50 −2.20
    advantage     1.00  0.50     −0.50 −1.00 −0.25
    value         0.20  0.40      0.10  0.00 −0.30
"""

from __future__ import annotations

import torch

from truing.batch import COLUMNS, Batch, Outputs
from truing.objectives.base import Objective, WholeStep

INDEX = ("chosen_G", "rejected_G", "step_end_S")
FLAG = (
    "finished_C",
    "label_C",
    "mismatched_C",
    "step_label_S",
    "demonstration_C",
    "of_reference_C",
)
VALUES: dict[str, list[float]] = {
    "chosen_G": [0],
    "rejected_G": [1],
    "margin_G": [0.5],
    "probability_G": [0.8],
    "label_C": [1, 0],
    "mismatched_C": [0, 0],
    "finished_C": [1, 0],
    "step_end_S": [2, 5],
    "step_label_S": [1, 0],
    "sampled_logps_N": [-0.4, -1.3, -1.2, -0.5, -2.2],
    "reference_logps_N": [-0.75, -1.25, -1.0, -0.5, -1.5],
    "scores_C": [1.0, 0.0],
    "baseline_C": [0.25, 0.25],
    "values_N": [0.1, 0.5, 0.0, 0.2, -0.2],
    "advantages_N": [1.0, 0.5, -0.5, -1.0, -0.25],
    "returns_N": [1.0, 0.8, -0.4, -0.6, -0.2],
    "demonstration_C": [0, 0],
    "of_reference_C": [0, 1],
}
LOGPS_N = [-0.5, -1.0, -1.5, -0.25, -2.0]


def stated_point() -> tuple[Batch, Outputs]:
    """The batch of this module's table, float64, with every column an author may need."""
    index_N = torch.arange(5)
    blank_T = torch.zeros(6, dtype=torch.long)
    batch = Batch(
        tokens_T=blank_T,
        positions_T=blank_T,
        group_T=blank_T,
        branch_T=blank_T,
        source_N=index_N,
        target_N=index_N + 1,
        completion_N=torch.tensor([0, 0, 1, 1, 1]),
        group_C=torch.tensor([0, 0]),
    )
    kinds = dict.fromkeys(INDEX, torch.long) | dict.fromkeys(FLAG, torch.bool)
    columns = {
        name: torch.tensor(values, dtype=kinds.get(name, torch.float64))
        for name, values in VALUES.items()
    }
    assert columns.keys() <= COLUMNS.keys()
    outputs = Outputs(
        logps_N=torch.tensor(LOGPS_N, dtype=torch.float64),
        entropy_N=torch.tensor([1.2, 0.9, 1.4, 0.3, 1.0], dtype=torch.float64),
        values_N=torch.tensor([0.2, 0.4, 0.1, 0.0, -0.3], dtype=torch.float64),
        scores_C=torch.tensor([0.7, -0.2], dtype=torch.float64),
        scores_S=torch.tensor([0.7, -0.2], dtype=torch.float64),
        collision_N=torch.tensor([-0.9, -0.6, -1.1, -0.2, -0.8], dtype=torch.float64),
    )
    return batch.with_columns(**columns), outputs


def worked(objective: Objective) -> float:
    """The objective's mean loss at the stated point, to 6 decimals.

    Columns that it prepares itself are prepared from this one batch, as in a first step.
    """
    batch, outputs = stated_point()
    (batch,) = objective.prepare(WholeStep([batch], lambda _: outputs))
    loss = objective(batch, outputs)
    return round(float(loss.total) / loss.weight, 6)
