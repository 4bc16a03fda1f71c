"""Conservative DPO: preferences that are wrong with a known probability.

    h = β (ρ(chosen) − ρ(rejected)),   ρ = log π − log π_ref, summed over tokens
    L = (1/P) Σ_pairs [ −(1−ε) log σ(h) − ε log σ(−h) ]

The cross-entropy between labels that are right with probability 1−ε and the policy's own
preference σ(h). Its optimum on one pair is σ(h) = 1−ε, a finite margin of log((1−ε)/ε): it stops
where plain DPO would go on for ever. At the reference the loss is ln 2 whatever ε.

Gradient: β (σ(h) − (1−ε)) (∇log π(chosen) − ∇log π(rejected)): DPO's times 1−2ε at step 0, zero
at the optimum, and back towards it beyond.
Implementations: TRL's present `sigmoid` ignores label_smoothing, before 2026-02 it was this loss;
eric-mitchell's and HALOs' apply it (HALOs ε 0.2). Here it has a name of its own.
Source: Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO"
(ericmitchell.ai/cdpo.pdf), eq. 3; the loss it smooths: Rafailov et al. 2023, "Direct Preference
Optimization: Your Language Model is Secretly a Reward Model" (arXiv 2305.18290), eq. 7.

    >>> worked(CDPO(beta=0.1, label_smoothing=0.1))
    0.645099
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


def cdpo_loss(margin_P: Tensor, label_smoothing: float) -> Tensor:
    """−(1−ε) log σ(h) − ε log σ(−h) per pair, from reward margins h. Shape [P]."""
    right, wrong = 1 - label_smoothing, label_smoothing
    return -right * logsigmoid(margin_P) - wrong * logsigmoid(-margin_P)


@dataclass(frozen=True, config=KNOBS)
class CDPO(PairObjective):
    """DPO on labels that are flipped with probability ε.

    Shapes: logps_N and reference_logps_N in nats. Raises nothing of its own. Departures: none.
    """

    beta: Positive = 0.1
    """β > 0: larger stays closer to the reference. 0.1 in the DPO paper."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """ε in [0, ½): share of labels taken to be wrong; larger stops at a smaller margin. 0 is
    DPO."""

    step_zero = at_reference(math.log(2))

    def pair_losses(self, pairs: Pairs) -> Tensor:
        return cdpo_loss(self.margins(pairs), self.label_smoothing)
