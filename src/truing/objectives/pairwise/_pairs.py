"""What the pairwise objectives share: the two sides of a pair, and the metrics everyone logs.

P pairs (one per group G) · N predicted tokens · C completions
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from truing.batch import Batch, Loss, Metric, Outputs, mean_of
from truing.objectives.base import Objective
from truing.objectives.pairwise._declared import Average
from truing.ops import segment_sum


@dataclass(frozen=True, slots=True)
class Side:
    """The chosen, or the rejected, completion of every pair."""

    logps_P: Tensor
    """log π(y|x), summed over tokens. Nats."""
    reference_P: Tensor
    """log π_ref(y|x), summed; zeros for methods without a reference."""
    lengths_P: Tensor
    """Tokens, stop token included. Means over the tokens of an empty completion are 0."""

    @property
    def ratio_P(self) -> Tensor:
        """ρ = log π − log π_ref."""
        return self.logps_P - self.reference_P

    @property
    def mean_logp_P(self) -> Tensor:
        """log π per token."""
        return self.logps_P / self.lengths_P.clamp(min=1)

    @property
    def mean_ratio_P(self) -> Tensor:
        """ρ per token."""
        return self.ratio_P / self.lengths_P.clamp(min=1)


@dataclass(frozen=True, slots=True)
class Pairs:
    """A batch as pairs."""

    chosen: Side
    rejected: Side
    batch: Batch
    outputs: Outputs


def pairs_of(
    batch: Batch, outputs: Outputs, *, reference: bool, weights_N: Tensor | None = None
) -> Pairs:
    """The sides of every pair. `weights_N` multiplies each token's log-probs (both models')."""
    assert outputs.logps_N is not None
    logps_N = outputs.logps_N
    reference_N = batch["reference_logps_N"] if reference else torch.zeros_like(logps_N)
    if weights_N is not None:
        logps_N, reference_N = logps_N * weights_N, reference_N * weights_N
    logps_C = segment_sum(logps_N, batch.completion_N, batch.size_C)
    reference_C = segment_sum(reference_N, batch.completion_N, batch.size_C)
    lengths_C = batch.lengths_C.to(logps_C.dtype)
    chosen, rejected = (
        Side(logps_C[side_P], reference_C[side_P], lengths_C[side_P])
        for side_P in (batch["chosen_G"], batch["rejected_G"])
    )
    return Pairs(chosen, rejected, batch, outputs)


class PairObjective(Objective):
    """An objective over pairs: subclasses say the loss of each pair, this says the rest."""

    trains = "policy"
    unit = "pairs"
    needs = frozenset({"chosen_G", "rejected_G", "reference_logps_N"})

    beta: float

    @abstractmethod
    def pair_losses(self, pairs: Pairs) -> Tensor:
        """The loss of each pair. Shape [P]."""

    def read(self, batch: Batch, outputs: Outputs) -> Pairs:
        """The sides of every pair, as this method reads log-probs."""
        return pairs_of(batch, outputs, reference="reference_logps_N" in self.needs)

    def rewards(self, side: Side) -> Tensor:
        """The implicit reward of a side, for the metrics. Shape [P]."""
        return self.beta * side.ratio_P

    def margins(self, pairs: Pairs) -> Tensor:
        """h, by how much the chosen side's implicit reward is larger. Shape [P]."""
        return self.rewards(pairs.chosen) - self.rewards(pairs.rejected)

    def more_metrics(self, pairs: Pairs) -> dict[str, Metric]:
        """What this method measures besides the common metrics."""
        return {}

    def __call__(self, batch: Batch, outputs: Outputs) -> Loss:
        pairs = self.read(batch, outputs)
        loss_P = self.pair_losses(pairs)
        chosen_P = self.rewards(pairs.chosen).detach()
        rejected_P = self.rewards(pairs.rejected).detach()
        metrics = {
            "loss": mean_of(loss_P),
            "rewards/chosen": mean_of(chosen_P),
            "rewards/rejected": mean_of(rejected_P),
            "rewards/margins": mean_of(chosen_P - rejected_P),
            "rewards/accuracies": mean_of((chosen_P > rejected_P).float()),
            "logps/chosen": mean_of(pairs.chosen.logps_P),
            "logps/rejected": mean_of(pairs.rejected.logps_P),
        }
        return Loss(loss_P.sum(), self.weigh(batch), metrics | self.more_metrics(pairs))


def nll_of(side: Side, average: Average) -> Tensor:
    """Negative log-likelihood of a side: per token of each sequence, or summed. Shape [P]."""
    return -(side.mean_logp_P if average == "sequence" else side.logps_P)
