"""What every objective declares, so that nothing else needs to know its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import ConfigDict

from truing.batch import Batch, Loss, Outputs

KNOBS = ConfigDict(extra="forbid", use_attribute_docstrings=True)
"""Configuration of an objective's dataclass: unknown fields are errors, docstrings are docs."""

Trains = Literal["policy", "reward", "policy+value"]
Unit = Literal["tokens", "completions", "pairs"]


class Objective(ABC):
    """Numbers to a loss. A frozen dataclass whose fields are the paper's hyper-parameters.

    Calling it is pure mathematics on one batch: `total` is a SUM over `unit`, `weight` how many
    units there were. The step divides once by the weight of all micro-batches and ranks, so
    neither accumulation nor world size changes the result.
    """

    trains: ClassVar[Trains]
    """Which parameters learn: the language model, a reward head on it, or both it and a value."""
    unit: ClassVar[Unit]
    """What the loss is averaged over."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Columns of the batch it reads (see truing.batch.COLUMNS)."""
    credit: ClassVar[str | None] = None
    """For on-policy objectives: the rule of truing.rollouts that turns rewards into advantages."""
    step_zero: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Metric -> (value, tolerance) that must hold before the first update."""

    @abstractmethod
    def __call__(self, batch: Batch, outputs: Outputs) -> Loss:
        """The mathematics."""
