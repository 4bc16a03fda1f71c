"""f-DPO: DPO with another divergence as the leash.

    u = π / π_ref over the whole completion,   ρ = log u
    L = −(1/P) Σ_pairs log σ( β f'(u(chosen)) − β f'(u(rejected)) )

    reverse_kl       f' = log u            this is `dpo`
    forward_kl       f' = −1/u
    jensen_shannon   f' = log(2u/(1+u))
    alpha            f' = (1 − u^−α)/α     reverse KL as α → 0, forward KL at α = 1

The optimum is that of reward minus β times the f-divergence to the reference, on Bradley-Terry
preferences. Only reverse KL forgets a constant per prompt; the others tell how likely an answer
is, not only which is likelier. At the reference the loss is ln 2.

Gradient: DPO's, each side times u f''(u) = 1, 1/u, 1/(1+u) or u^−α: a chosen answer that is already
likelier than under the reference is pulled less, a side that fell below it more (Jensen-Shannon
at most as much as DPO, and half of it at step 0).
Implementations: TRL's present α is one minus the paper's, α here is the paper's; they meet at ½.
Source: Wang et al. 2023, "Beyond Reverse KL: Generalizing Direct Preference Optimization with
Diverse Divergence Constraints" (arXiv 2309.16240).

    >>> worked(FDPO(beta=0.1))
    0.660556
    >>> worked(FDPO(beta=0.1, divergence="forward_kl"))
    0.620473
    >>> worked(FDPO(beta=0.1, divergence="alpha", alpha=0.5))
    0.627813
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.objectives.base import KNOBS
from truing.objectives.pairwise._declared import Positive, at_reference
from truing.objectives.pairwise._pairs import PairObjective, Pairs, Side
from truing.ops import EXP_LIMIT

Divergence = Literal["jensen_shannon", "reverse_kl", "forward_kl", "alpha"]


def f_derivative(ratio_P: Tensor, divergence: Divergence, alpha: float) -> Tensor:
    """f'(e^ρ) up to a constant that cancels in a pair: 0 at ρ = 0. Shape [P]."""
    if divergence == "reverse_kl":
        return ratio_P
    if divergence == "jensen_shannon":
        return math.log(2) + logsigmoid(ratio_P)
    power = alpha if divergence == "alpha" else 1.0
    return -torch.expm1((-power * ratio_P).clamp(max=EXP_LIMIT)) / power


@dataclass(frozen=True, config=KNOBS)
class FDPO(PairObjective):
    """DPO whose implicit reward is β times the derivative of an f-divergence.

    Shapes: logps_N and reference_logps_N in nats. Raises nothing of its own. Departures: αρ (ρ
    for forward KL) is kept above −20 inside exp, so a completion that became e^20 times rarer
    than under the reference gets no gradient where the exact one would be of that size.
    """

    beta: Positive = 0.1
    """β > 0: larger stays closer to the reference, in this divergence. 0.1 in use."""
    divergence: Divergence = "jensen_shannon"
    """Which divergence: towards forward KL the policy covers the reference, towards reverse KL it
    seeks modes."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """α in (0, 1), read only by `alpha`: larger is closer to forward KL. 0.3 to 0.7 in the
    paper."""

    step_zero = at_reference(math.log(2))

    def rewards(self, side: Side) -> Tensor:
        return self.beta * f_derivative(side.ratio_P, self.divergence, self.alpha)

    def pair_losses(self, pairs: Pairs) -> Tensor:
        return -logsigmoid(self.margins(pairs))
