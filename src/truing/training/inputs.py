"""What a training stage is given by the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from truing import config
from truing.groups import TokenGroup
from truing.rollouts.collect import Rollout, Scorer


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a training stage is given by the pipeline."""

    source: str
    """The model to start from, as loading.resolve gave it."""
    revision: str | None
    model: config.Model
    stop_id: int
    train: Sequence[TokenGroup]
    heldout: Sequence[TokenGroup]
    demonstrations: Sequence[TokenGroup]
    """What an on-policy objective with ptx_coef keeps learning; others never see it."""
    reward_run: Path | None
    """Run directory of the reward model, if a stage made it."""
    shares_trunk: bool
    """Whether that reward model is an adapter on the very weights in `source`."""
    reward: Scorer | None
    """A reward that is no network of ours."""
    on_rollout: Callable[[int, Rollout], None]
    seed: int
    where: str
    readable: Callable[[Sequence[int]], str] | None = None
    """Ids -> text, for stop sequences."""
