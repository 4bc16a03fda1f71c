"""NCA: like InfoNCA, but it learns how likely each completion is, not only which is likelier.

    r̂(y) = β (log π(y|x) − log π_ref(y|x))
    L    = −(1/G) Σ_groups Σ_i [ softmax(r/α)_i log σ(r̂_i) + (1/K) log σ(−r̂_i) ]

K completions of one prompt with scores r. Each is classified on its own: drawn from the policy, or
from the reference. If the completions come from the reference, the optimum is the same as
InfoNCA's, π ∝ π_ref exp(r / (αβ)), but r̂ is fixed absolutely, not up to a constant per prompt.

Gradient: β (1/K − target_i)/2 at the reference: completions with more than an equal share rise,
the others fall, and each stops at r̂_i = log(K target_i), so the best one is not dragged down.
Implementations: TRL has the case K = 2 with target (1, 0), here `nca_pair`. Here lists of any
length, every list with the same weight.
Source: Chen et al. 2024, "Noise Contrastive Alignment of Language Models with Explicit Rewards"
(arXiv 2402.05369), section 4.

    >>> worked(NCA(beta=0.1))
    1.372778
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.objectives.base import KNOBS
from truing.objectives.listwise._lists import ListObjective, Lists


def nca_loss(target_logps_C: Tensor, rewards_C: Tensor, sizes_C: Tensor) -> Tensor:
    """Cross-entropy of 'from the policy or the reference?' per completion. Shape [C]."""
    return -target_logps_C.exp() * logsigmoid(rewards_C) - logsigmoid(-rewards_C) / sizes_C


@dataclass(frozen=True, config=KNOBS)
class NCA(ListObjective):
    """The implicit reward of each completion is fitted to its share of the list's scores.

    Shapes: logps_N and reference_logps_N in nats, scores_C in the reward's unit. Raises nothing of
    its own. Departures: none.
    """

    beta: Annotated[float, Field(gt=0)] = 0.01
    """β > 0: larger stays closer to the reference. 0.01 in the paper."""
    alpha: Annotated[float, Field(gt=0)] = 1.0
    """α > 0, in the reward's unit: temperature of the target; smaller trusts the best score more.
    The paper tunes it to the reward's scale."""

    def list_losses(self, lists: Lists) -> Tensor:
        target_C = lists.log_softmax(lists.scores_C / self.alpha)
        return nca_loss(target_C, lists.rewards_C, lists.sizes_C)
