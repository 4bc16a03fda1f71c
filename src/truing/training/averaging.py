"""A moving average of the weights, which is what the stage leaves behind if it is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from truing.training.optim import MasterWeights


class WeightAverage:
    """average ← decay · average + (1 − decay) · weights, after every step.

    Starts at the weights the stage starts from, in float32: one more copy of what is trained.
    Source: Ouyang et al. 2022 (arXiv 2203.02155), appendix C: 0.992 for PPO.
    """

    def __init__(self, masters: MasterWeights, decay: float) -> None:
        self.masters, self.decay = masters, decay
        self.averages: dict[str, Tensor] = {
            name: p.detach().clone() for name, p in masters.masters.items()
        }

    @torch.no_grad()
    def follow(self, taken: int) -> None:
        """Take in the weights as they are now."""
        for name, average in self.averages.items():
            average.lerp_(self.masters.masters[name].detach(), 1 - self.decay)

    @torch.no_grad()
    def adopt(self) -> None:
        """Put the average in the place of the weights, for masters and compute copies."""
        for name, average in self.averages.items():
            self.masters.masters[name].copy_(average)
        self.masters.publish()
