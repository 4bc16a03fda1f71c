"""Supervised fine-tuning: maximum likelihood of demonstrations.

    token          L = −(1/N) Σ_n log π(y_n | x, y_<n)
    sequence       L = −(1/C) Σ_c (1/L_c) Σ_{n in c} log π(y_n | x, y_<n)
    sequence_sum   L = −(1/C) Σ_c Σ_{n in c} log π(y_n | x, y_<n)

N tokens and C completions of the whole optimizer step, L_c tokens of completion c. The stop token
is one of them where the author meant to stop. With pairs, the chosen completion is the
demonstration. The minimiser is the law of the data; only the weight of each demonstration differs.

Gradient: every token pulls its own log-prob up with the same force, whatever it already is; in
the form `sequence` the tokens of a long completion pull less each.
Implementations: TRL and transformers average over tokens (of the whole step, since the repair of
gradient accumulation in late 2024); the first DPO code sums per sequence, so that long
demonstrations dominate. We let you choose, and every mean is over the whole step. A completion
without tokens is not counted as a sequence.
Source: Ouyang et al. 2022, "Training language models to follow instructions with human feedback"
(arXiv 2203.02155), section 3.5.

    >>> worked(SFT())
    1.05
"""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Batch, Loss, Metric, Outputs, mean_of
from truing.objectives.base import KNOBS, Objective

Aggregation = Literal["token", "sequence", "sequence_sum"]


def nll(
    logps_N: Tensor, completion_N: Tensor, lengths_C: Tensor, aggregation: Aggregation
) -> Tensor:
    """What each token adds to the sum over tokens or completions. Nats, shape [N]."""
    return -logps_N / lengths_C[completion_N] if aggregation == "sequence" else -logps_N


@dataclass(frozen=True, config=KNOBS)
class SFT(Objective):
    """Negative log-likelihood of completion tokens.

    Shapes: logps_N in nats. Raises nothing of its own. Departures: none.
    """

    aggregation: Aggregation = "token"
    """What counts the same: every token of the step (TRL's default), every completion with the
    mean of its tokens (`sequence`), or every completion with their sum (`sequence_sum`)."""

    trains = "policy"
    unit = "tokens"

    def weigh(self, batch: Batch) -> float:
        if self.aggregation == "token":
            return float(batch.size_N)
        return float((batch.lengths_C > 0).sum())

    def __call__(self, batch: Batch, outputs: Outputs) -> Loss:
        assert outputs.logps_N is not None
        nll_N = nll(outputs.logps_N, batch.completion_N, batch.lengths_C, self.aggregation)
        total, weight = nll_N.sum(), self.weigh(batch)
        metrics = {"loss": Metric(total.detach().float(), weight)}
        if outputs.entropy_N is not None:
            metrics["entropy"] = mean_of(outputs.entropy_N)
        return Loss(total, weight, metrics)
