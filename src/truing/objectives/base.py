"""What every objective declares, so that nothing else needs to know its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict
from torch import Tensor

from truing.batch import Batch, Loss, Outputs

KNOBS = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
"""Configuration of an objective's dataclass: unknown fields and numbers that are none are errors,
docstrings are docs."""

Trains = Literal["policy", "reward", "policy+value"]
Unit = Literal["tokens", "completions", "pairs", "groups", "steps"]


@dataclass(slots=True)
class WholeStep:
    """All micro-batches of one optimizer step, before its first gradient."""

    batches: list[Batch]
    compute: Callable[[Batch], Outputs]
    """What the learning network says of a batch now, without gradients. Costs a forward pass."""
    carried: dict[str, Tensor] = field(default_factory=dict)
    """What earlier steps left for later ones (running means); part of a checkpoint."""
    number: int = 0
    """How many steps were taken before this one."""


class FromFields:
    """A declaration that follows from the fields. Read from the class, it is the defaults'."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self.read = read

    def __get__(self, objective: object | None, kind: type) -> Any:
        return self.read(kind() if objective is None else objective)


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
    """Columns of the batch it always reads (see truing.batch.COLUMNS)."""
    extra_outputs: ClassVar[frozenset[str]] = frozenset()
    """Outputs it reads besides those of what it trains (see truing.batch.Outputs)."""
    prepared: ClassVar[frozenset[str]] = frozenset()
    """Those of its columns that its own `prepare` adds."""
    credit: ClassVar[str | None] = None
    """For on-policy objectives: the rule of rollouts/credit that turns rewards into advantages."""
    curation: ClassVar[str | None] = None
    """For objectives over rows that only the policy itself can make: the rule of rollouts/curation
    that makes them. Others learn from rows that are there, or, given a reward, from their own."""
    recipe_defaults: ClassVar[Mapping[str, Any]] = {}
    """What this method's paper sets in the credit rule and the stage; a recipe's own keys win."""
    moves_reference: ClassVar[bool] = False
    """Whether the reference follows the policy (then it has `mixup_alpha` and `sync_steps`)."""
    step_zero: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Metric -> (value, tolerance) that must hold before the first update."""

    @abstractmethod
    def __call__(self, batch: Batch, outputs: Outputs) -> Loss:
        """The mathematics."""

    @property
    def required(self) -> frozenset[str]:
        """Columns it reads as its fields are set: `needs`, and what a field switches on."""
        return self.needs

    def weigh(self, batch: Batch) -> float:
        """How many units of the loss a batch holds. Never depends on what the models say."""
        counts: dict[Unit, Callable[[], int]] = {
            "tokens": lambda: batch.size_N,
            "completions": lambda: batch.size_C,
            "pairs": lambda: batch["chosen_G"].numel(),
            "groups": lambda: batch.size_G,
            "steps": lambda: batch["step_label_S"].numel(),
        }
        return float(counts[self.unit]())

    def prepare(self, step: WholeStep) -> list[Batch]:
        """The step's batches with what must be known of all of them at once; most need nothing.

        For batch-coupled methods (KTO's baseline, sorted pairs, running means): since it sees the
        whole step, the loss does not depend on how the step is cut into micro-batches.
        """
        return step.batches
