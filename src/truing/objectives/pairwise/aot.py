"""Alignment via optimal transport: the law of one score is to dominate the law of another.

    paired     u_i = log π(w_i) − log π(l_i)      v_i = log π_ref(w_i) − log π_ref(l_i)
    unpaired   u_i = ρ(w_i)                       v_i = ρ(l_i)      ρ = log π − log π_ref
    L = −(1/P) Σ_k log σ( β (u_(k) − v_(k)) )     (k): the k-th smallest of the whole step

Every quantile of u is to lie above the same quantile of v, whichever pairs these are: hard pairs
may lose as long as as many others win. Paired compares the policy's margins with the reference's;
unpaired compares chosen with rejected answers, which need not share prompts.

Gradient: DPO's, with the rival of the same rank in place of the own. Ranks are taken over all
micro-batches; rivals enter as numbers, each side pulls in its own term, and the value counts the
two as one. Ties take their order in the step: the value is the same, the gradient one of several.
Implementations: TRL sorts within each micro-batch, so its loss depends on how a step is cut; here
the whole optimizer step is sorted. The paper also offers soft sorting and other costs; not here.
Source: Melnyk et al. 2024, "Distributional Preference Alignment of LLMs via Optimal Transport"
(arXiv 2406.05882), sections 2 and 3.

    >>> worked(AOT(beta=0.1))
    0.632599
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.batch import Batch, Outputs
from truing.objectives._gather import gather, hand_out
from truing.objectives.base import KNOBS, WholeStep
from truing.objectives.pairwise._declared import Positive, at_reference
from truing.objectives.pairwise._pairs import PairObjective, Pairs


def same_rank(upper_P: Tensor, lower_P: Tensor) -> tuple[Tensor, Tensor]:
    """For each of `upper` the one of `lower` with its rank, and the other way round. Shape [P]."""
    by_upper, by_lower = upper_P.argsort(stable=True), lower_P.argsort(stable=True)
    upper_rival_P = torch.empty_like(upper_P).scatter(0, by_upper, lower_P[by_lower])
    lower_rival_P = torch.empty_like(lower_P).scatter(0, by_lower, upper_P[by_upper])
    return upper_rival_P, lower_rival_P


def aot_loss(
    upper_P: Tensor, upper_rival_P: Tensor, lower_P: Tensor, lower_rival_P: Tensor, beta: float
) -> Tensor:
    """−log σ of both sides against detached rivals: twice the gradient's terms, one value. [P]."""
    upper_loss_P = -logsigmoid(beta * (upper_P - upper_rival_P))
    lower_loss_P = -logsigmoid(beta * (lower_rival_P - lower_P))
    both_P = upper_loss_P + lower_loss_P
    return both_P - both_P.detach() / 2


@dataclass(frozen=True, config=KNOBS)
class AOT(PairObjective):
    """DPO between quantiles of the step instead of between the two sides of a pair.

    Shapes: logps_N and reference_logps_N in nats. Raises nothing of its own. Departures: hard
    sorting and the logistic cost only. Summed over a step the value is the formula's; a single
    pair's loss is the mean of its two comparisons.
    """

    beta: Positive = 0.01
    """β > 0: larger stays closer to the reference. 0.01 in the paper."""
    pairing: Literal["paired", "unpaired"] = "paired"
    """What is sorted: margins of policy and reference, or log-ratios of chosen and rejected."""

    needs = PairObjective.needs | {"chosen_rival_G", "rejected_rival_G"}
    prepared = frozenset({"chosen_rival_G", "rejected_rival_G"})
    step_zero = at_reference(math.log(2))

    def sides(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """u, which is to dominate, and v. Shape [P] each."""
        chosen, rejected = pairs.chosen, pairs.rejected
        if self.pairing == "unpaired":
            return chosen.ratio_P, rejected.ratio_P
        return chosen.logps_P - rejected.logps_P, chosen.reference_P - rejected.reference_P

    def prepare(self, step: WholeStep) -> list[Batch]:
        def both(batch: Batch, outputs: Outputs) -> Tensor:
            return torch.stack(self.sides(self.read(batch, outputs)))

        upper_rival_G, lower_rival_G = same_rank(*gather(step, both))
        return hand_out(step.batches, chosen_rival_G=upper_rival_G, rejected_rival_G=lower_rival_G)

    def pair_losses(self, pairs: Pairs) -> Tensor:
        upper_P, lower_P = self.sides(pairs)
        batch = pairs.batch
        return aot_loss(
            upper_P, batch["chosen_rival_G"], lower_P, batch["rejected_rival_G"], self.beta
        )
