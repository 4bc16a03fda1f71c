"""Trust-region DPO: the reference follows the policy.

    L     = −(1/P) Σ_pairs log σ( β (ρ(chosen) − ρ(rejected)) ),   ρ = log π − log π_ref
    π_ref ← α π + (1−α) π_ref     in the weights, every τ steps

DPO's loss with a leash that is let out as the policy walks. Small α every few steps is the soft
update, α = 1 every few hundred the hard one. Away from the original reference over-optimisation
starts later, but the distance walked is no longer in the loss: measure KL to the first model.

Gradient: DPO's; after each update margins shrink, so decided pairs pull again.
Implementations: TRL agrees (0.6 every 512 steps), but averages in the model's precision: small
moves are lost in bfloat16. Log-probs cached for a fixed reference are void after the first update.
Source: Gorbatovski et al. 2024, "Learn Your Reference Model for Real Good Alignment"
(arXiv 2404.09656), section 3.

    >>> worked(TRDPO(beta=0.1))
    0.632599
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from truing.objectives.base import KNOBS
from truing.objectives.pairwise._declared import Positive
from truing.objectives.pairwise.dpo import DPO


@dataclass(frozen=True, config=KNOBS)
class TRDPO(DPO):
    """DPO against a reference that is mixed with the policy every `sync_steps` steps.

    Shapes: as DPO. Raises nothing of its own. Departures: none; the update itself is training's,
    which reads `moves_reference` and these two fields.
    """

    beta: Positive = 0.1
    """β > 0: larger stays closer to the present reference. 0.1 as in DPO."""
    mixup_alpha: Annotated[float, Field(gt=0, le=1)] = 0.6
    """α in (0, 1]: share of the policy in the new reference; larger is a looser leash. 1 replaces
    it. 0.6 in the paper."""
    sync_steps: Annotated[int, Field(ge=1)] = 512
    """τ ≥ 1: optimizer steps between updates; larger keeps each reference longer. 512 in the
    paper's hard update."""

    moves_reference = True
