"""Contrastive preference optimisation: DPO without a reference, held by likelihood.

    ℓ(y) = log π(y|x), summed over the completion's tokens
    L    = (1/P) Σ_pairs [ −log σ( β (ℓ(chosen) − ℓ(rejected)) ) + α NLL(chosen) ]

DPO with a uniform reference, which saves the second model; the supervised term is the leash. Sums
favour short answers as winners and long ones as losers, so the value at the start depends on
the data.

Gradient: −β σ(−h)(∇ℓ(chosen) − ∇ℓ(rejected)) with h the argument of σ, and −α ∇ℓ(chosen) that
does not fade: as β → 0 this is supervised fine-tuning.
Implementations: all sum log-probs; TRL averages the NLL over the tokens of the batch, here it is
over those of each sequence.
Source: Xu et al. 2024, "Contrastive Preference Optimization: Pushing the Boundaries of LLM
Performance in Machine Translation" (arXiv 2401.08417), eq. 5.

    >>> worked(CPO(beta=0.1, nll_coef=1))
    1.336962
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Metric, mean_of
from truing.objectives.base import KNOBS
from truing.objectives.pairwise._declared import REFERENCE_FREE, Average, NonNegative, Positive
from truing.objectives.pairwise._pairs import PairObjective, Pairs, nll_of
from truing.objectives.pairwise.dpo import dpo_loss


@dataclass(frozen=True, config=KNOBS)
class CPO(PairObjective):
    """A contrast of summed log-probs plus α times the chosen answer's NLL.

    Shapes: logps_N in nats. Raises nothing of its own. Departures: the NLL is averaged over each
    sequence, so that every pair weighs the same.
    """

    beta: Positive = 0.1
    """β > 0: weight of a nat of margin; larger decides pairs at smaller margins. 0.1 in the
    paper."""
    nll_coef: NonNegative = 1.0
    """α ≥ 0: larger is closer to supervised fine-tuning; 0 has no leash. 1 in the paper."""
    nll_average: Average = "sequence"
    """Per token of each sequence, or summed (then long answers weigh more)."""

    needs = REFERENCE_FREE

    def pair_losses(self, pairs: Pairs) -> Tensor:
        contrast_P = dpo_loss(pairs.chosen.logps_P, pairs.rejected.logps_P, self.beta)
        return contrast_P + self.nll_coef * nll_of(pairs.chosen, self.nll_average)

    def more_metrics(self, pairs: Pairs) -> dict[str, Metric]:
        return {"nll_loss": mean_of(nll_of(pairs.chosen, self.nll_average))}
