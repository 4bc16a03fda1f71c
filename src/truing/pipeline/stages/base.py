"""What a stage of a recipe can do, whatever its kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from truing.config import Stage
from truing.pipeline.context import Context, Tick
from truing.rundir import RunInfo


@dataclass(frozen=True, slots=True)
class Totals:
    """What a stage took."""

    tokens: int
    """Tokens computed or drawn, prompts counted once per group."""
    steps: int = 0
    model_copies: float | None = None


class PipelineStage(ABC):
    """One stage, read and checked, not yet run."""

    makes: str
    """What later stages may take from it: 'weights', 'reward', 'step rewards', 'groups',
    'completions' or ''."""

    def __init__(self, name: str, config: Stage) -> None:
        self.name, self.config = name, config

    @classmethod
    @abstractmethod
    def read(cls, name: str, raw: Mapping[str, Any], where: str) -> Self:
        """From a recipe's keys. Raises UsageError."""

    @property
    def knobs(self) -> dict[str, Any]:
        """Every key with its value, for config.yaml."""
        return self.config.model_dump(mode="json", by_alias=True)

    @property
    def modules(self) -> list[str]:
        """Modules of ours that its result comes from, with all that they import."""
        return [type(self).__module__]

    @property
    def files(self) -> list[Path]:
        """Further source files that are found by name, not imported."""
        return []

    def check(self, context: Context) -> None:
        """Whatever can be found wrong before weights are loaded. Raises TruingError."""

    @abstractmethod
    def run(self, context: Context, info: RunInfo, tick: Tick) -> Totals:
        """Do it; write into `context.run(self.name)`; add facts to `info`."""

    def tidy(self, context: Context) -> None:
        """Remove what was kept for --resume alone: the stage is done, its result on the disk."""
