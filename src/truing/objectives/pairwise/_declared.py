"""What pairwise objectives declare: ranges of their fields, and the loss at the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Average = Literal["sequence", "sum"]
"""How the log-likelihood of a sequence is measured: per token of it, or summed over them."""

REFERENCE_FREE = frozenset({"chosen_G", "rejected_G"})
"""`needs` of the methods that read no reference: half the models, and no leash."""

Expected = Mapping[str, tuple[float, float]]

NO_MARGIN: Expected = {"rewards/margins": (0.0, 1e-5)}
"""At the reference no side has an implicit reward; the loss there depends on the data."""


def at_reference(loss: float) -> Expected:
    """A `step_zero`: the loss where policy and reference agree, to five digits, and no margin."""
    return {"loss": (loss, 1e-5 * max(1.0, loss)), **NO_MARGIN}
