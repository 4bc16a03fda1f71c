"""One file per kind of stage, found by its name; every objective is the kind `train`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truing import registry
from truing.config import PIPELINE_METHODS
from truing.pipeline.stages.base import PipelineStage


def read(name: str, raw: Mapping[str, Any], where: str) -> PipelineStage:
    """A stage from its raw keys, checked. Loads no weights. Raises UsageError."""
    kind = str(raw["method"]) if raw["method"] in PIPELINE_METHODS else "train"
    return registry.find(__name__, kind, PipelineStage).read(name, raw, where)  # type: ignore[type-abstract]
