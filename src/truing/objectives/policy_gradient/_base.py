"""What the objectives on the policy's own samples share around their surrogates.

N predicted tokens, flat · C completions
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from truing.batch import Batch, Loss, Metric, Outputs, mean_of
from truing.objectives.base import Objective, Unit
from truing.objectives.policy_gradient._surrogates import Aggregation, aggregate


class PolicyGradient(Objective):
    """An objective on the ratio to the policy that sampled; subclasses say the surrogate."""

    trains = "policy"
    unit: ClassVar[Unit] = "completions"
    needs = frozenset({"sampled_logps_N", "advantages_N"})
    credit = "group"
    recipe_defaults = {"num_generations": 8, "score_normalization": "none"}
    step_zero = {"val/ratio": (1.0, 0.0), "clip_ratio/region_mean": (0.0, 0.0)}

    @abstractmethod
    def surrogate(self, batch: Batch, logps_N: Tensor) -> tuple[Tensor, dict[str, Metric]]:
        """The loss, summed, and what this method measures."""

    def __call__(self, batch: Batch, outputs: Outputs) -> Loss:
        assert outputs.logps_N is not None
        total, measured = self.surrogate(batch, outputs.logps_N)
        weight = self.weigh(batch)
        metrics = {"loss": Metric(total.detach().float(), weight)} | measured
        if outputs.entropy_N is not None:
            metrics["entropy"] = mean_of(outputs.entropy_N)
        return Loss(total, weight, metrics)


class TokenPolicyGradient(PolicyGradient):
    """One with a loss per token; how tokens are averaged is one named choice.

    A completion that must not count is not in the batch at all (`Batch.keep`).
    """

    aggregation: Aggregation
    max_completion_length: int

    @abstractmethod
    def token_losses(self, batch: Batch, logps_N: Tensor) -> tuple[Tensor, dict[str, Metric]]:
        """The loss of each token, shape [N], and what this method measures."""

    def weigh(self, batch: Batch) -> float:
        return float(batch.size_N if self.aggregation == "token" else batch.size_C)

    def surrogate(self, batch: Batch, logps_N: Tensor) -> tuple[Tensor, dict[str, Metric]]:
        loss_N, metrics = self.token_losses(batch, logps_N)
        where = (batch.completion_N, batch.size_C)
        return aggregate(loss_N, *where, self.aggregation, self.max_completion_length), metrics
