"""InfoNCA: cross-entropy between the softmax of given rewards and that of implicit ones.

    r̂(y) = β (log π(y|x) − log π_ref(y|x))
    L    = −(1/G) Σ_groups Σ_i softmax(r/α)_i log softmax(r̂)_i

Softmaxes run over the K completions of one prompt, r are their scores. With two completions and a
target of (1, 0) it is DPO. If the completions come from the reference, the optimum is
π ∝ π_ref exp(r / (αβ)): that of reward minus αβ KL.

Gradient: β (softmax(r̂)_i − softmax(r/α)_i) per completion, which sums to 0 over a list: only
relative likelihood is taught, and the best completion may become less likely with the others.
Implementations: only the paper's code has it; elsewhere it appears as DPO, its case of two. Here
lists of any length, every list with the same weight.
Source: Chen et al. 2024, "Noise Contrastive Alignment of Language Models with Explicit Rewards"
(arXiv 2402.05369), section 3.

    >>> worked(InfoNCA(beta=0.1))
    0.666217
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.objectives.base import KNOBS
from truing.objectives.listwise._lists import ListObjective, Lists


def infonca_loss(target_logps_C: Tensor, implicit_logps_C: Tensor) -> Tensor:
    """−target·log(implicit) per completion, both log-probs within its list. Shape [C]."""
    return -target_logps_C.exp() * implicit_logps_C


@dataclass(frozen=True, config=KNOBS)
class InfoNCA(ListObjective):
    """The policy's preference among a list is fitted to that of the scores.

    Shapes: logps_N and reference_logps_N in nats, scores_C in the reward's unit. Raises nothing of
    its own. Departures: none. A list of one teaches nothing and counts.
    """

    beta: Annotated[float, Field(gt=0)] = 0.01
    """β > 0: larger stays closer to the reference. 0.01 in the paper."""
    alpha: Annotated[float, Field(gt=0)] = 1.0
    """α > 0, in the reward's unit: temperature of the target; smaller trusts the best score more,
    in the limit only that. The paper tunes it to the reward's scale."""

    def list_losses(self, lists: Lists) -> Tensor:
        target_C = lists.log_softmax(lists.scores_C / self.alpha)
        return infonca_loss(target_C, lists.log_softmax(lists.rewards_C))
