"""Binary classifier optimisation on pairs: each side is classified on its own.

    r̂(y) = β (log π(y|x) − log π_ref(y|x))
    L    = −(1/P) Σ_pairs [ log σ(r̂_w − δ) + log σ(−(r̂_l − δ)) ]

δ is the mean of every r̂ of both sides seen so far, this step's included, detached. The loss bounds
DPO's from above and, unlike it, fixes each r̂ and not only their difference.

Gradient: ∓β (1 − σ(±(r̂ − δ))) for each side: chosen is pulled up until it stands above the mean of
everything, however far rejected has fallen.
Implementations: TRL's `bco_pair` loss fixes δ = 0, its former BCO trainer kept the running mean,
its paper index prints DPO's formula; here the running mean, over whole steps, kept in checkpoints.
Source: Jung et al. 2024, "Binary Classifier Optimization for Large Language Model Alignment"
(arXiv 2404.04656), section 4.2, theorem 3.

    >>> worked(BCOPair(beta=0.1))
    1.324771
"""

from __future__ import annotations

import math

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.batch import Batch, Metric, Outputs, mean_of
from truing.objectives._gather import gather, hand_out, running_mean
from truing.objectives.base import KNOBS, WholeStep
from truing.objectives.pairwise._declared import Positive, at_reference
from truing.objectives.pairwise._pairs import PairObjective, Pairs


def bco_pair_loss(
    chosen_reward_P: Tensor, rejected_reward_P: Tensor, reward_shift: Tensor | float
) -> Tensor:
    """−log σ(r̂_w − δ) − log σ(δ − r̂_l) per pair. Shape [P]."""
    won_P = logsigmoid(chosen_reward_P - reward_shift)
    return -won_P - logsigmoid(reward_shift - rejected_reward_P)


@dataclass(frozen=True, config=KNOBS)
class BCOPair(PairObjective):
    """Cross-entropy of a classifier whose logit is the implicit reward less its running mean.

    Shapes: logps_N and reference_logps_N in nats. Raises nothing of its own. Departures: none.
    """

    beta: Positive = 0.1
    """β > 0: larger stays closer to the reference. 0.1 in use."""

    needs = PairObjective.needs | {"reward_shift"}
    prepared = frozenset({"reward_shift"})
    step_zero = at_reference(2 * math.log(2))

    def prepare(self, step: WholeStep) -> list[Batch]:
        def both(batch: Batch, outputs: Outputs) -> Tensor:
            pairs = self.read(batch, outputs)
            return torch.cat([self.rewards(pairs.chosen), self.rewards(pairs.rejected)])

        return hand_out(step.batches, reward_shift=running_mean(step, gather(step, both)))

    def pair_losses(self, pairs: Pairs) -> Tensor:
        chosen_P, rejected_P = self.rewards(pairs.chosen), self.rewards(pairs.rejected)
        return bco_pair_loss(chosen_P, rejected_P, pairs.batch["reward_shift"])

    def more_metrics(self, pairs: Pairs) -> dict[str, Metric]:
        return {"rewards/shift": mean_of(pairs.batch["reward_shift"])}
