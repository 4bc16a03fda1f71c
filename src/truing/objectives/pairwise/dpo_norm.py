"""Length-normalised DPO: the log-ratio per token is the reward.

    ρ̄(y) = (log π(y|x) − log π_ref(y|x)) / |y|
    L    = −(1/P) Σ_pairs log σ( β (ρ̄(chosen) − ρ̄(rejected)) )

A long completion no longer earns more by having more tokens. The price is that a constant per
prompt no longer cancels once lengths differ, and so neither does the optimum of reward minus
β KL carry over. At the reference the loss is ln 2.

Gradient: DPO's with each side divided by its own length; β is on the scale of one token, hence
some fifty times DPO's.
Implementations: open-instruct's `dpo_norm` and TRL's `sigmoid_norm` agree.
Source: Lambert et al. 2024, "Tulu 3: Pushing Frontiers in Open Language Model Post-Training"
(arXiv 2411.15124), length-normalised DPO; the normalisation: Meng et al. 2024, "SimPO:
Simple Preference Optimization with a Reference-Free Reward" (arXiv 2405.14734).

    >>> worked(DPONorm(beta=5))
    0.07889
"""

from __future__ import annotations

import math

from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.objectives.base import KNOBS
from truing.objectives.pairwise._declared import Positive, at_reference
from truing.objectives.pairwise._pairs import PairObjective, Pairs, Side
from truing.objectives.pairwise.dpo import dpo_loss


@dataclass(frozen=True, config=KNOBS)
class DPONorm(PairObjective):
    """DPO on log-ratios per token.

    Shapes: logps_N and reference_logps_N in nats. Raises nothing of its own. Departures: none.
    """

    beta: Positive = 5.0
    """β > 0: larger stays closer to the reference, per token. 5 in Tulu 3."""

    step_zero = at_reference(math.log(2))

    def rewards(self, side: Side) -> Tensor:
        return self.beta * side.mean_ratio_P

    def pair_losses(self, pairs: Pairs) -> Tensor:
        return dpo_loss(pairs.chosen.mean_ratio_P, pairs.rejected.mean_ratio_P, self.beta)
