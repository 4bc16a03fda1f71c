"""Robust DPO: an unbiased estimate, from noisy labels, of DPO's loss on clean ones.

    h = β (ρ(chosen) − ρ(rejected)),   ρ = log π − log π_ref, summed over tokens
    L = (1/P) Σ_pairs [ −(1−ε) log σ(h) + ε log σ(−h) ] / (1−2ε)

If labels are flipped with probability ε, the expectation over flips is DPO's loss on the true
labels. The price is a loss that falls without bound as h grows, with slope −ε/(1−2ε): it may be
negative, and it never stops widening the margin, so stop early. At the reference it is ln 2.

Gradient: DPO's times 1/(1−2ε) at step 0, and a constant pull of ε/(1−2ε) on pairs that are
already decided.
Implementations: TRL `robust` agrees.
Source: Chowdhury et al. 2024, "Provably Robust DPO: Aligning Language Models with Noisy Feedback"
(arXiv 2403.00409), section 3.1.

    >>> worked(Robust(beta=0.1, label_smoothing=0.1))
    0.616974
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.objectives.base import KNOBS
from truing.objectives.pairwise._declared import Positive, at_reference
from truing.objectives.pairwise._pairs import PairObjective, Pairs


def robust_loss(margin_P: Tensor, label_smoothing: float) -> Tensor:
    """[−(1−ε) log σ(h) + ε log σ(−h)] / (1−2ε) per pair, from reward margins h. Shape [P]."""
    right, wrong = 1 - label_smoothing, label_smoothing
    return (wrong * logsigmoid(-margin_P) - right * logsigmoid(margin_P)) / (right - wrong)


@dataclass(frozen=True, config=KNOBS)
class Robust(PairObjective):
    """DPO whose loss is corrected for labels that are flipped with probability ε.

    Shapes: logps_N and reference_logps_N in nats. Raises nothing of its own. Departures: none.
    """

    beta: Positive = 0.1
    """β > 0: larger stays closer to the reference. 0.01 in the paper."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """ε in [0, ½): share of flipped labels; larger corrects more and has more variance. 0 is DPO,
    0.1 in the paper."""

    step_zero = at_reference(math.log(2))

    def pair_losses(self, pairs: Pairs) -> Tensor:
        return robust_loss(self.margins(pairs), self.label_smoothing)
