"""Weighted preference optimisation: pairs count as much as the policy might have written them.

    w(y) = exp( (1/|y|) Σ_t [ log π(y_t) − log Σ_v π(v)² ] ),   no gradient
    L    = (1/P) Σ_pairs w(chosen) w(rejected) · DPO(pair)

A correction of off-policy pairs: Σ_v π(v)² is the probability expected of a token that the policy
samples itself, so its own samples have weights around 1 and foreign text less. The weights
follow the policy, the sum is still divided by the number of pairs.

Gradient: DPO's, times the weight of the pair; the weights themselves are not learnt.
Implementations: TRL as here (to 0.28 it capped the product of weights at 1); open-instruct leaves
out Σ_v π(v)², caps at 1 and lets a gradient through the weights.
Source: Zhou et al. 2024, "WPO: Enhancing RLHF with Weighted Preference Optimization"
(arXiv 2406.11827), eq. 1 and 2.

    >>> worked(WPO(beta=0.1))
    0.364978
"""

from __future__ import annotations

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Metric, mean_of
from truing.objectives.base import KNOBS
from truing.objectives.pairwise._declared import NO_MARGIN, Positive
from truing.objectives.pairwise._pairs import PairObjective, Pairs
from truing.objectives.pairwise.dpo import dpo_loss
from truing.ops import EXP_LIMIT, segment_sum


def pair_weights(pairs: Pairs) -> Tensor:
    """w(chosen) w(rejected), detached. Shape [P]."""
    batch, outputs = pairs.batch, pairs.outputs
    assert outputs.logps_N is not None
    assert outputs.collision_N is not None
    excess_N = (outputs.logps_N - outputs.collision_N).detach()
    excess_C = segment_sum(excess_N, batch.completion_N, batch.size_C)
    mean_C = excess_C / batch.lengths_C.clamp(min=1)
    mean_P = mean_C[batch["chosen_G"]] + mean_C[batch["rejected_G"]]
    return torch.exp(mean_P.clamp(max=EXP_LIMIT))


@dataclass(frozen=True, config=KNOBS)
class WPO(PairObjective):
    """DPO weighted by how likely the present policy is to write both answers.

    Shapes: logps_N, reference_logps_N and collision_N in nats. Raises nothing of its own.
    Departures: the exponent is kept below 20, more than twice what a vocabulary can reach.
    """

    beta: Positive = 0.1
    """β > 0: larger stays closer to the reference. 0.1 as in DPO."""

    extra_outputs = frozenset({"collision_N"})
    step_zero = NO_MARGIN

    def pair_losses(self, pairs: Pairs) -> Tensor:
        dpo_P = dpo_loss(pairs.chosen.ratio_P, pairs.rejected.ratio_P, self.beta)
        return pair_weights(pairs) * dpo_P

    def more_metrics(self, pairs: Pairs) -> dict[str, Metric]:
        return {"policy_weights": mean_of(pair_weights(pairs))}
