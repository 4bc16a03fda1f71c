"""EXO: the reverse KL from the policy's preference among a list to that of the scores.

    r̂(y) = β (log π(y|x) − log π_ref(y|x)),   p = softmax(r̂),   q = softmax(r/β_r)
    L    = (1/G) Σ_groups Σ_i p_i (log p_i − log q_i)

Softmaxes run over the K completions of one prompt, r are their scores. InfoNCA (and with it DPO)
is the other direction, KL(q‖p): it covers every mode of the target, this one seeks the largest, as
the exact objective does. Never negative; 0 at its optimum, where π ∝ π_ref exp(r / (β β_r)).

Gradient: β p_i (a_i − Σ_j p_j a_j) with a = log p − log q: a policy gradient within the list. It
fades where p_i does: a completion the policy has given up is hardly taught any more.
Implementations: the paper's code has this reward form and the pair form (`exo_pair`), TRL the pair
form only. Here lists of any length, every list with the same weight.
Source: Ji et al. 2024, "Towards Efficient Exact Optimization of Language Model Alignment"
(arXiv 2402.00856), section 3.

    >>> worked(EXO(beta=0.1))
    0.090854
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.objectives.base import KNOBS
from truing.objectives.listwise._lists import ListObjective, Lists


def exo_loss(implicit_logps_C: Tensor, target_logps_C: Tensor) -> Tensor:
    """p (log p − log q) per completion, both within its list. Shape [C]."""
    return implicit_logps_C.exp() * (implicit_logps_C - target_logps_C)


@dataclass(frozen=True, config=KNOBS)
class EXO(ListObjective):
    """The policy's preference among a list seeks the mode of that of the scores.

    Shapes: logps_N and reference_logps_N in nats, scores_C in the reward's unit. Raises nothing of
    its own. Departures: none. A list of one teaches nothing and counts.
    """

    beta: Annotated[float, Field(gt=0)] = 0.1
    """β > 0: larger stays closer to the reference. 0.1 in the paper's code."""
    beta_reward: Annotated[float, Field(gt=0)] = 1.0
    """β_r > 0, in the reward's unit: temperature of the target; smaller trusts the best score more.
    The paper's, where the product β β_r is the coefficient of KL."""

    def list_losses(self, lists: Lists) -> Tensor:
        target_C = lists.log_softmax(lists.scores_C / self.beta_reward)
        return exo_loss(lists.log_softmax(lists.rewards_C), target_C)
