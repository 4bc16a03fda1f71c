"""DPO-positive: DPO that is charged when the chosen answer becomes rarer than it was.

    h = β (ρ(chosen) − ρ(rejected)),   ρ = log π − log π_ref, summed over tokens
    L = −(1/P) Σ_pairs log σ( h − β λ max(0, −ρ(chosen)) )

The margin may not be bought by pushing both answers down, as DPO does on pairs that differ in a
few tokens. While the chosen answer is at least as likely as under the reference this is exactly
DPO. At the reference the loss is ln 2.

Gradient: DPO's while ρ(chosen) ≥ 0; below, the chosen side is pulled up 1+λ times as hard as the
rejected one is pushed down.
Implementations: no disagreement known.
Source: Pal et al. 2024, "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive"
(arXiv 2402.13228).

    >>> worked(DPOP(beta=0.1, penalty=50))
    0.632599
"""

from __future__ import annotations

import math

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.objectives.base import KNOBS
from truing.objectives.pairwise._declared import NonNegative, Positive, at_reference
from truing.objectives.pairwise._pairs import PairObjective, Pairs


def dpop_loss(
    chosen_ratio_P: Tensor, rejected_ratio_P: Tensor, beta: float, penalty: float
) -> Tensor:
    """−log σ(β (ρ_chosen − ρ_rejected − λ max(0, −ρ_chosen))) per pair, ratios in nats. [P]."""
    lost_P = torch.relu(-chosen_ratio_P)
    return -logsigmoid(beta * (chosen_ratio_P - rejected_ratio_P - penalty * lost_P))


@dataclass(frozen=True, config=KNOBS)
class DPOP(PairObjective):
    """DPO with a penalty on chosen answers that fell below the reference.

    Shapes: logps_N and reference_logps_N in nats. Raises nothing of its own. Departures: none; at
    the kink, where training starts, the gradient is DPO's.
    """

    beta: Positive = 0.1
    """β > 0: larger stays closer to the reference. 0.1 as in DPO."""
    penalty: NonNegative = 50.0
    """λ ≥ 0: larger forbids more strictly that the chosen answer gets rarer. 0 is DPO, 50 in the
    paper."""

    step_zero = at_reference(math.log(2))

    def pair_losses(self, pairs: Pairs) -> Tensor:
        return dpop_loss(pairs.chosen.ratio_P, pairs.rejected.ratio_P, self.beta, self.penalty)
