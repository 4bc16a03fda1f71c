"""Dynamic fine-tuning: supervised, but a token pulls in proportion to its own probability.

    L = −(1/N) Σ_n sg[π(y_n | x, y_<n)] log π(y_n | x, y_<n)

sg stops the gradient. Read as policy gradient, plain maximum likelihood rewards a token with
1/π: the less the policy expects it, the more. The factor π takes that out, so that tokens the
policy finds absurd teach little; with them go both outliers and knowledge it really lacks.

Gradient: −∇π(y_n), bounded: it vanishes at π = 0 as well as where the token is certain. So what
falls is −π, not the printed value: that rises until a token's π is 1/e, and only then falls.
Implementations: TRL's `dft` loss, the same, and as here a mean over all tokens of the step.
Source: Wu et al. 2025, "On the Generalization of SFT: A Reinforcement Learning Perspective with
Reward Rectification" (arXiv 2508.05629), section 3.3, eq. 9.

    >>> worked(DFT())
    0.294242
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Batch, Loss, Outputs, mean_of
from truing.objectives.base import KNOBS, Objective


def dft_loss(logps_N: Tensor) -> Tensor:
    """−sg[π]·log π per token, from log-probs in nats. Shape [N]."""
    # rounding can lift a log-prob above 0; a probability is at most 1
    return -logps_N.detach().clamp(max=0).exp() * logps_N


@dataclass(frozen=True, config=KNOBS)
class DFT(Objective):
    """Log-likelihood weighed by the probability itself, averaged over all tokens of the step.

    Shapes: logps_N in nats. Raises nothing of its own. Departures: none.
    """

    trains = "policy"
    unit = "tokens"

    def __call__(self, batch: Batch, outputs: Outputs) -> Loss:
        assert outputs.logps_N is not None
        loss_N = dft_loss(outputs.logps_N)
        metrics = {
            "loss": mean_of(loss_N),
            "nll": mean_of(-outputs.logps_N),
            "token_probability": mean_of(outputs.logps_N.exp()),
        }
        return Loss(loss_N.sum(), self.weigh(batch), metrics)
