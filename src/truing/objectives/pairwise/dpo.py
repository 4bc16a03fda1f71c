"""Direct preference optimisation: the policy itself is the reward model.

    ρ(y) = log π(y|x) − log π_ref(y|x)     summed over the completion's tokens
    L    = −(1/P) Σ_pairs log σ( β (ρ(chosen) − ρ(rejected)) )

At the reference the loss is ln 2. Its optimum on Bradley-Terry preferences with full support is
the optimum of reward minus β KL.

Gradient: −β σ(−h)(∇log π(chosen) − ∇log π(rejected)) with h the argument of σ: pairs that are
already decided pull less, but never stop, so the chosen log-prob may fall with the rejected one.
Implementations: all sum log-ratios; TRL's present `sigmoid` ignores label_smoothing, here
smoothing is a method of its own (`cdpo`, `robust`).
Source: Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a
Reward Model" (arXiv 2305.18290), eq. 7.

    >>> worked(DPO(beta=0.1))
    0.632599
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.objectives.base import KNOBS
from truing.objectives.pairwise._pairs import PairObjective, Pairs


def dpo_loss(chosen_ratio_P: Tensor, rejected_ratio_P: Tensor, beta: float) -> Tensor:
    """−log σ(β (ρ_chosen − ρ_rejected)) per pair, from summed log-ratios in nats. Shape [P]."""
    return -logsigmoid(beta * (chosen_ratio_P - rejected_ratio_P))


@dataclass(frozen=True, config=KNOBS)
class DPO(PairObjective):
    """The preference loss whose implicit reward is β times the log-ratio to the reference.

    Shapes: logps_N and reference_logps_N in nats. Raises nothing of its own. Departures: none;
    log-probs are summed, not averaged, so long completions weigh more.
    """

    beta: Annotated[float, Field(gt=0)] = 0.1
    """β > 0: larger stays closer to the reference. 0.1 in the paper, 0.01-0.5 in use."""

    step_zero = {"loss": (math.log(2), 1e-5), "rewards/margins": (0.0, 1e-5)}

    def pair_losses(self, pairs: Pairs) -> Tensor:
        return dpo_loss(pairs.chosen.ratio_P, pairs.rejected.ratio_P, self.beta)
