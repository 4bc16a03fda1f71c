"""Truing: post-training for language models that you can check.

The names below are loaded when they are first used: importing truing imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from truing.api import run
    from truing.batch import Batch, Loss, Outputs
    from truing.errors import TruingError
    from truing.groups import Completion, FinishReason, Group, Message, Prompt
    from truing.objectives import find as objective
    from truing.objectives._worked import worked

_HOME = {
    "run": "truing.api",
    "Batch": "truing.batch",
    "Outputs": "truing.batch",
    "Loss": "truing.batch",
    "TruingError": "truing.errors",
    "Group": "truing.groups",
    "Prompt": "truing.groups",
    "Message": "truing.groups",
    "Completion": "truing.groups",
    "FinishReason": "truing.groups",
    "objective": "truing.objectives",
    "worked": "truing.objectives._worked",
}

__all__ = [
    "Batch",
    "Completion",
    "FinishReason",
    "Group",
    "Loss",
    "Message",
    "Outputs",
    "Prompt",
    "TruingError",
    "objective",
    "run",
    "worked",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'truing' has no attribute '{name}'")
    module = importlib.import_module(_HOME[name])
    value = getattr(module, "find" if name == "objective" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
