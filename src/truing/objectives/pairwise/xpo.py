"""Exploratory preference optimisation: DPO on own samples, with a bonus for leaving the reference.

    pairs: y ~ π against ỹ ~ π_ref, labelled by a reward or a judge;  ρ = log π − log π_ref
    L = (1/P) Σ_pairs [ −log σ( β (ρ(chosen) − ρ(rejected)) ) + α log π(ỹ|x) ]

The second term makes what the reference says rarer, whether it won or lost: the policy is sent to
where nothing is known yet, which is provably enough to find the optimum by sampling from itself.
With α = 0 it is online DPO against the reference.

Gradient: DPO's, plus α ∇log π(ỹ): a constant push away from the reference's own answers.
Implementations: TRL agrees, but gives the pair to whoever is first when scores are equal, and
subtracts its missing-EOS penalty where prompt and completion together have no stop token.
Source: Xie et al. 2024, "Exploratory Preference Optimization: Harnessing Implicit Q*-Approximation
for Sample-Efficient RLHF" (arXiv 2405.21046), algorithm 1.

    >>> worked(XPO(beta=0.1, alpha=0.01))
    0.595099
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Metric, mean_of
from truing.objectives.base import KNOBS
from truing.objectives.pairwise._declared import NO_MARGIN, NonNegative, Positive
from truing.objectives.pairwise._pairs import PairObjective, Pairs
from truing.objectives.pairwise.dpo import dpo_loss


@dataclass(frozen=True, config=KNOBS)
class XPO(PairObjective):
    """DPO plus α times the log-prob of the reference's completion.

    Shapes: logps_N and reference_logps_N in nats, of_reference_C as bool. Raises nothing of its
    own. Departures: none; at the reference the loss is ln 2 + α log π(ỹ), which depends on the
    samples.
    """

    beta: Positive = 0.1
    """β > 0: larger stays closer to the reference. 0.1 in use."""
    alpha: NonNegative = 1e-5
    """α ≥ 0: larger explores more; much larger only unlearns the reference. 0 is online DPO. The
    paper goes from 1e-5 to 0 over three rounds."""

    needs = PairObjective.needs | {"of_reference_C"}
    curation = "against_reference"
    recipe_defaults = {"num_generations": 1}
    step_zero = NO_MARGIN

    def pair_losses(self, pairs: Pairs) -> Tensor:
        dpo_P = dpo_loss(pairs.chosen.ratio_P, pairs.rejected.ratio_P, self.beta)
        return dpo_P + self.alpha * _reference_side(pairs)

    def more_metrics(self, pairs: Pairs) -> dict[str, Metric]:
        return {"logps/of_reference": mean_of(_reference_side(pairs))}


def _reference_side(pairs: Pairs) -> Tensor:
    """log π of the completion that the reference drew, chosen or not. Shape [P]."""
    drawn_C, batch = pairs.batch["of_reference_C"], pairs.batch
    chosen_P = drawn_C[batch["chosen_G"]] * pairs.chosen.logps_P
    return chosen_P + drawn_C[batch["rejected_G"]] * pairs.rejected.logps_P
