"""β-DPO: DPO whose β follows how clear the step's pairs are, after leaving out the odd ones.

    Δ_i = ρ(w_i) − ρ(l_i),  M = sg[Δ]
    μ, s ← m (μ, s) + (1−m) (mean M, std M)   over the step; the first step starts them
    keep: round(keep_ratio · P) pairs, drawn without replacement ∝ exp(−½ ((M_i − μ)/s)²)
    β_b = max(10⁻³, β (1 + a (mean of the kept M − μ)))
    L   = −(1/P_kept) Σ_kept log σ(β_b Δ_i)

Pairs far from the usual gap are taken for noise and mostly left out; where the rest are clearer
than usual β rises, so that a step that is already decided moves the policy less. μ and s contain
the step itself. A single pair has no spread: s = 0, as where all pairs are alike (at the
reference), and then the draw is even.

Gradient: DPO's on the kept pairs, scaled by β_b; neither β_b nor the draw carries a gradient.
Implementations: the paper writes M with β₀, its code without, as here. The code starts μ and s at 0
and keeps the floor of the count; we start at the first step's and round, at least one. It draws per
call from the global generator; we draw once per optimizer step, by Gumbel top-k seeded with the
number of the step, so neither micro-batches nor a resumed run change the draw.
Source: Wu et al. 2024, "β-DPO: Direct Preference Optimization with Dynamic β" (arXiv 2407.08639),
section 4.

    >>> worked(BetaDPO(beta=0.1))
    0.632599
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.batch import Batch, Metric, Outputs, mean_of
from truing.objectives._gather import gather, hand_out, moving_average
from truing.objectives.base import KNOBS, WholeStep
from truing.objectives.pairwise._declared import NonNegative, Positive, at_reference
from truing.objectives.pairwise._pairs import PairObjective, Pairs

LEAST_BETA = 1e-3
TINY = 1e-8
"""Takes the place of a spread of 0, in nats: every deviation is then 0 too, or beyond doubt odd."""


def spread(gaps_P: Tensor) -> Tensor:
    """Bessel's standard deviation; 0 for a single element, which has none. A number."""
    squares = (gaps_P - gaps_P.mean()).square().sum()
    return (squares / max(gaps_P.numel() - 1, 1)).sqrt()


def draw(log_weights_P: Tensor, count: int, seed: int) -> Tensor:
    """True for `count` elements drawn without replacement ∝ e^log_weight (Gumbel top-k)."""
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draw on every device
    waiting_P = torch.empty(log_weights_P.numel(), dtype=torch.float64)
    gumbel_P = -waiting_P.exponential_(generator=generator).log()
    drawn = torch.topk(log_weights_P + gumbel_P.to(log_weights_P), count).indices
    return torch.zeros_like(log_weights_P, dtype=torch.bool).index_fill(0, drawn, True)


@dataclass(frozen=True, config=KNOBS)
class BetaDPO(PairObjective):
    """DPO on a filtered step, with a β of the step.

    Shapes: logps_N and reference_logps_N in nats. Raises nothing of its own. Departures: the first
    step's own mean and spread start the averages. Metrics are of the kept pairs, at the step's β.
    """

    beta: Positive = 0.1
    """β₀ > 0: β of a step as clear as usual. 0.1 in the paper."""
    sensitivity: NonNegative = 0.6
    """a ≥ 0: how strongly β follows the gap, per nat; 0 leaves only the filter. 0.6: paper."""
    keep_ratio: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of pairs to learn from; 1 turns the filter off. 0.8 in the paper."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """m in [0, 1): how slowly the usual gap follows the steps. 0.9 in the paper."""

    needs = PairObjective.needs | {"step_beta", "kept_G"}
    prepared = frozenset({"step_beta", "kept_G"})
    step_zero = at_reference(math.log(2))

    def weigh(self, batch: Batch) -> float:
        return float(batch["kept_G"].sum())

    def prepare(self, step: WholeStep) -> list[Batch]:
        def read(batch: Batch, outputs: Outputs) -> Tensor:
            pairs = super(BetaDPO, self).read(batch, outputs)
            return pairs.chosen.ratio_P - pairs.rejected.ratio_P

        gaps_G = gather(step, read)
        usual = moving_average(step, "gap_mean", gaps_G.mean(), self.momentum)
        width = moving_average(step, "gap_std", spread(gaps_G), self.momentum).clamp(min=TINY)
        count = max(1, round(self.keep_ratio * gaps_G.numel()))
        kept_G = draw(-((gaps_G - usual) / width).square() / 2, count, step.number)
        clearer = gaps_G[kept_G].mean() - usual
        beta = (self.beta * (1 + self.sensitivity * clearer)).clamp(min=LEAST_BETA)
        return hand_out(step.batches, kept_G=kept_G, step_beta=beta)

    def read(self, batch: Batch, outputs: Outputs) -> Pairs:
        kept_G = batch["kept_G"]
        sides = {name: batch[name][kept_G] for name in ("chosen_G", "rejected_G")}
        return super().read(batch.with_columns(**sides), outputs)

    def pair_losses(self, pairs: Pairs) -> Tensor:
        gaps_P = pairs.chosen.ratio_P - pairs.rejected.ratio_P
        return -logsigmoid(pairs.batch["step_beta"] * gaps_P)

    def more_metrics(self, pairs: Pairs) -> dict[str, Metric]:
        beta = pairs.batch["step_beta"]
        chosen_P, rejected_P = beta * pairs.chosen.ratio_P, beta * pairs.rejected.ratio_P
        return {
            "beta": mean_of(beta),
            "rewards/chosen": mean_of(chosen_P),
            "rewards/rejected": mean_of(rejected_P),
            "rewards/margins": mean_of(chosen_P - rejected_P),
        }
