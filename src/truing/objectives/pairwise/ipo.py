"""Identity preference optimisation: regress the margin to a finite target.

    Δ = ρ(chosen) − ρ(rejected),   ρ = log π − log π_ref, summed over tokens or per token
    L = (1/P) Σ_pairs ( Δ − 1/(2τ) )²

Summed, the optimum over pairs drawn from μ is ρ(y) = p(y ≻ μ)/τ + constant for any preferences,
intransitive ones too: no Bradley-Terry model is assumed. Pairs that always agree ask for
Δ = 1/(2τ) and no more, where DPO's margin grows without end. At the reference it is 1/(4τ²).

Gradient: 2 (Δ − 1/(2τ)) (∇ℓ(chosen) − ∇ℓ(rejected)), so −1/τ per nat at step 0: it does not
saturate on lost pairs and reverses on those that overshoot.
Implementations: TRL, HALOs and LLaMA-Factory divide each ρ by its own length (as TRL says, after
asking the authors); eric-mitchell's and OpenRLHF sum, like the paper's notation. Per token by
default; the theorem holds for the sum, which is `ipo_sum`.
Source: Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human
Preferences" (arXiv 2310.12036), eq. 17.

    >>> worked(IPO(tau=0.1))
    20.25
    >>> worked(IPO(tau=0.1, length_normalize=False))
    14.0625
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.objectives.base import KNOBS, FromFields
from truing.objectives.pairwise._declared import Expected, Positive, at_reference
from truing.objectives.pairwise._pairs import PairObjective, Pairs, Side


def ipo_loss(difference_P: Tensor, tau: float) -> Tensor:
    """(Δ − 1/(2τ))² per pair, from differences of log-ratios in nats. Shape [P]."""
    return (difference_P - 1 / (2 * tau)).square()


@dataclass(frozen=True, config=KNOBS)
class IPO(PairObjective):
    """Squared distance of the difference of log-ratios from 1/(2τ).

    Shapes: log-probs over N in nats. Raises nothing of its own. Departures: per token by default.
    """

    tau: Positive = 0.1
    """τ > 0: the leash; larger asks for a smaller margin. 0.1, 0.5 and 1 in the paper."""
    length_normalize: bool = True
    """Whether each log-ratio is divided by its tokens: then length has no say. Off in the paper."""

    @FromFields
    def step_zero(self) -> Expected:
        return at_reference(1 / (4 * self.tau**2))

    def rewards(self, side: Side) -> Tensor:
        return self.tau * (side.mean_ratio_P if self.length_normalize else side.ratio_P)

    def pair_losses(self, pairs: Pairs) -> Tensor:
        return ipo_loss(self.margins(pairs) / self.tau, self.tau)
