"""Supervised fine-tuning: maximum likelihood of demonstrations.

    L = −(1/N) Σ_n log π(y_n | x, y_<n)        N = predicted tokens of the whole optimizer step

The stop token is one of the predicted tokens where the author meant to stop. With pairs, the
loader keeps the chosen completion only.

Source: InstructGPT (Ouyang et al. 2022, arXiv 2203.02155), section 3.5, step 1.
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from truing.batch import Batch, Loss, Outputs, mean_of
from truing.objectives.base import KNOBS, Objective


@dataclass(frozen=True, config=KNOBS)
class SFT(Objective):
    """Negative log-likelihood per completion token, averaged over all tokens of the step.

    Shapes: logps_N in nats. Raises nothing of its own. Departure: none; a token of a long
    demonstration counts as much as one of a short one (TRL's default too).
    """

    trains = "policy"
    unit = "tokens"

    def __call__(self, batch: Batch, outputs: Outputs) -> Loss:
        assert outputs.logps_N is not None
        nll_N = -outputs.logps_N
        metrics = {"loss": mean_of(nll_N)}
        if outputs.entropy_N is not None:
            metrics["entropy"] = mean_of(outputs.entropy_N)
        return Loss(nll_N.sum(), float(batch.size_N), metrics)
