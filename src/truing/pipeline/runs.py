"""What lies under a folder of runs: which stages, in which state, and whether it is whole.

Reads run directories and nothing else; loads no weights. No torch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from truing.errors import CheckpointError, UsageError
from truing.rundir import CONFIG_FILE, RUN_FILE, RunDirectory, RunInfo
from truing.storage import MANIFEST_FILE, read_manifest

SHOWN = ("loss", "eval/loss", "eval/accuracy", "objective/scores", "objective/kl", "grad_norm")
"""Metrics that are compared side by side."""


@dataclass(frozen=True, slots=True)
class Found:
    """One stage's run directory."""

    folder: Path
    info: RunInfo
    steps: list[int]
    """Its checkpoints, newest first."""

    @property
    def status(self) -> str:
        """completed, running, or where it stopped and whether it can go on."""
        if self.info.status == "completed":
            return "completed"
        if self.info.status == "running" and is_alive(self.info.process):
            return "running"
        where = f"stopped, resumable at step {self.steps[0]}" if self.steps else "stopped"
        reason = self.info.reason.splitlines()[0] if self.info.reason else ""
        return f"{where} ({reason})" if reason else where


def is_alive(process: str) -> bool:
    """Whether the process that wrote `PID@BOOT` is still there."""
    number, _, boot = process.partition("@")
    if boot != boot_id() or not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and someone else's
        return True
    return True
