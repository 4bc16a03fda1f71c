"""Noise contrastive alignment on pairs: absolute likelihoods, not only their order.

    r̂ = β ρ,   ρ = log π − log π_ref, summed over tokens
    L = (1/P) Σ_pairs [ −log σ(r̂(chosen)) − ½ log σ(−r̂(chosen)) − ½ log σ(−r̂(rejected)) ]

A classifier that tells data of the better policy from noise of the reference, with one positive
sample and two from the noise. The second term holds the chosen answer's reward down, so it has a
finite optimum, and the first keeps it from falling with the rejected one. At the reference the
loss is 2 ln 2. For more than two scored answers, see `nca`.

Gradient: (−¼, +¼) β on the two sides at step 0, half of DPO's; each side is judged by its own
reward and not by the margin.
Implementations: TRL `nca_pair` agrees.
Source: Chen et al. 2024, "Noise Contrastive Alignment of Language Models with Explicit Rewards"
(arXiv 2402.05369), section 4.1.

    >>> worked(NCAPair(beta=0.01))
    1.383178
"""

from __future__ import annotations

import math

from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.objectives.base import KNOBS
from truing.objectives.pairwise._declared import Positive, at_reference
from truing.objectives.pairwise._pairs import PairObjective, Pairs


def nca_pair_loss(chosen_reward_P: Tensor, rejected_reward_P: Tensor) -> Tensor:
    """−log σ(r̂_w) − ½ log σ(−r̂_w) − ½ log σ(−r̂_l) per pair, from implicit rewards. Shape [P]."""
    noise_P = logsigmoid(-chosen_reward_P) + logsigmoid(-rejected_reward_P)
    return -logsigmoid(chosen_reward_P) - noise_P / 2


@dataclass(frozen=True, config=KNOBS)
class NCAPair(PairObjective):
    """Noise contrastive estimation with the reference as noise.

    Shapes: logps_N and reference_logps_N in nats. Raises nothing of its own. Departures: none.
    """

    beta: Positive = 0.01
    """β > 0: larger stays closer to the reference. 0.01 in the paper."""

    step_zero = at_reference(2 * math.log(2))

    def pair_losses(self, pairs: Pairs) -> Tensor:
        return nca_pair_loss(self.rewards(pairs.chosen), self.rewards(pairs.rejected))
