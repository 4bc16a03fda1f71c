"""Exact optimisation on pairs: DPO's comparison with the divergence turned round.

    h = β (ρ(chosen) − ρ(rejected)),   ρ = log π − log π_ref, summed over tokens
    L = (1/P) Σ_pairs KL( σ(h), σ(−h) ‖ 1−ε, ε )

The reverse KL of the policy's preference from the label's, where cDPO has the forward one: with
few parameters it fits the mode instead of covering everything, as reward minus β KL does. The
minimum is 0, at a margin of log((1−ε)/ε). At the reference it is −ln 2 − ½ ln(ε(1−ε)).

Gradient: β σ(h) σ(−h) (h − log((1−ε)/ε)) per nat of margin: it fades on decided pairs, and on
hopelessly lost ones too.
Implementations: TRL takes ε = 1e-3, the official code e^−10; the formula is the same.
Source: Ji et al. 2024, "Towards Efficient Exact Optimization of Language Model Alignment"
(arXiv 2402.00856), section 3.2, eq. 16.

    >>> worked(EXOPair(beta=0.1, label_smoothing=1e-3))
    2.547625
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.objectives.base import KNOBS, FromFields
from truing.objectives.pairwise._declared import Expected, Positive, at_reference
from truing.objectives.pairwise._pairs import PairObjective, Pairs


def exo_pair_loss(margin_P: Tensor, label_smoothing: float) -> Tensor:
    """KL(σ(h), σ(−h) ‖ 1−ε, ε) per pair, from reward margins h. Shape [P]."""
    right_P = margin_P.sigmoid() * (logsigmoid(margin_P) - math.log1p(-label_smoothing))
    wrong_P = (-margin_P).sigmoid() * (logsigmoid(-margin_P) - math.log(label_smoothing))
    return right_P + wrong_P


@dataclass(frozen=True, config=KNOBS)
class EXOPair(PairObjective):
    """Reverse KL between the policy's preference and a smoothed label.

    Shapes: logps_N and reference_logps_N in nats. Raises nothing of its own. Departures: none.
    """

    beta: Positive = 0.1
    """β > 0: larger stays closer to the reference. 0.1 in the paper."""
    label_smoothing: Annotated[float, Field(gt=0, lt=0.5)] = 1e-3
    """ε in (0, ½): probability of the losing label; larger stops at a smaller margin."""

    @FromFields
    def step_zero(self) -> Expected:
        variance = self.label_smoothing * (1 - self.label_smoothing)
        return at_reference(-math.log(2) - math.log(variance) / 2)

    def pair_losses(self, pairs: Pairs) -> Tensor:
        return exo_pair_loss(self.margins(pairs), self.label_smoothing)
