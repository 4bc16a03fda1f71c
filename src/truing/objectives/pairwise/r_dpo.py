"""Regularised DPO: the reward is charged for length before it is learnt.

    h = β (ρ(chosen) − ρ(rejected)),   ρ = log π − log π_ref, summed over tokens
    L = −(1/P) Σ_pairs log σ( h + α (|chosen| − |rejected|) )

The optimum is that of the reward r − α|y|: what the labels owe to length alone is explained by
the added term, so the policy need not learn it.

Gradient: DPO's, smaller where the chosen answer is the longer one and larger where it is the
shorter.
Implementations: no disagreement known.
Source: Park et al. 2024, "Disentangling Length from Quality in Direct Preference Optimization"
(arXiv 2403.19159).

    >>> worked(RDPO(beta=0.1, alpha=0.01))
    0.637299
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.objectives.base import KNOBS
from truing.objectives.pairwise._declared import NO_MARGIN, NonNegative, Positive
from truing.objectives.pairwise._pairs import PairObjective, Pairs


def r_dpo_loss(margin_P: Tensor, extra_length_P: Tensor, alpha: float) -> Tensor:
    """−log σ(h + α (|chosen| − |rejected|)) per pair. Lengths in tokens. Shape [P]."""
    return -logsigmoid(margin_P + alpha * extra_length_P)


@dataclass(frozen=True, config=KNOBS)
class RDPO(PairObjective):
    """DPO with a price per token.

    Shapes: logps_N and reference_logps_N in nats; lengths count the stop token. Raises nothing of
    its own. Departures: none. At the reference the loss depends on the lengths.
    """

    beta: Positive = 0.1
    """β > 0: larger stays closer to the reference. 0.1 as in DPO."""
    alpha: NonNegative = 0.01
    """α ≥ 0, reward per token: larger makes shorter answers. 0 is DPO, 0.01 to 0.05 in the
    paper."""

    step_zero = NO_MARGIN

    def pair_losses(self, pairs: Pairs) -> Tensor:
        margin_P = self.margins(pairs)
        extra_length_P = pairs.chosen.lengths_P - pairs.rejected.lengths_P
        return r_dpo_loss(margin_P, extra_length_P, self.alpha)
