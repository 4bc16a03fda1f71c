"""Length-desensitised DPO: tokens beyond the shorter answer's length count less.

    m    = min(|chosen|, |rejected|)
    ρ(y) = Σ_{t ≤ m} log π_t/π_ref,t + α Σ_{t > m} log π_t/π_ref,t
    L    = −(1/P) Σ_pairs log σ( β (ρ(chosen) − ρ(rejected)) )

α = 1 is DPO; at α = 0 both sides are cut to the same number of tokens. In between, a longer
answer may win by its end, but not by the mere number of tokens there. At the reference: ln 2.

Gradient: DPO's, times α on every token of the longer answer beyond m.
Implementations: TRL scales the tails of policy and reference, LLaMA-Factory those of the policy
only, which moves the loss away from ln 2 at the reference. Here both are scaled.
Source: Liu et al. 2024, "Length Desensitization in Direct Preference Optimization"
(arXiv 2409.06411), from eq. 10 on.

    >>> worked(LDDPO(beta=0.1, alpha=0.5))
    0.644397
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Batch, Outputs
from truing.objectives.base import KNOBS
from truing.objectives.pairwise._declared import Positive, at_reference
from truing.objectives.pairwise._pairs import PairObjective, Pairs, pairs_of
from truing.objectives.pairwise.dpo import dpo_loss


def tail_weights(batch: Batch, alpha: float, dtype: torch.dtype) -> Tensor:
    """1 for the tokens both sides of a pair have, α for the longer side's others. Shape [N]."""
    lengths_C = batch.lengths_C
    chosen_P, rejected_P = batch["chosen_G"], batch["rejected_G"]
    common_P = torch.minimum(lengths_C[chosen_P], lengths_C[rejected_P])
    common_C = lengths_C.clone()
    common_C[chosen_P] = common_P
    common_C[rejected_P] = common_P
    index_N = torch.arange(batch.size_N, device=lengths_C.device)
    start_C = batch.last_C - lengths_C + 1
    tail_N = index_N >= (start_C + common_C)[batch.completion_N]
    return torch.ones_like(tail_N, dtype=dtype).masked_fill(tail_N, alpha)


@dataclass(frozen=True, config=KNOBS)
class LDDPO(PairObjective):
    """DPO with the tail of the longer answer scaled by α.

    Shapes: logps_N and reference_logps_N in nats. Raises nothing of its own. Departures: none;
    the metrics rewards/* and logps/* are of the scaled log-probs.
    """

    beta: Positive = 0.1
    """β > 0: larger stays closer to the reference. 0.1 as in DPO."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """α in [0, 1]: weight of the tail; larger is more sensitive to length. 1 is DPO, around 0.5
    in the paper."""

    step_zero = at_reference(math.log(2))

    def read(self, batch: Batch, outputs: Outputs) -> Pairs:
        assert outputs.logps_N is not None
        weights_N = tail_weights(batch, self.alpha, outputs.logps_N.dtype)
        return pairs_of(batch, outputs, reference=True, weights_N=weights_N)

    def pair_losses(self, pairs: Pairs) -> Tensor:
        return dpo_loss(pairs.chosen.ratio_P, pairs.rejected.ratio_P, self.beta)
