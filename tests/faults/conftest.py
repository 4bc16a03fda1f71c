"""What every test of a fault uses: a place for the run, and what the unbroken run leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness import GENTLE, left_by, succeeded, truing

from truing.models import loading, saving, tiny


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """stage -> what its unbroken run leaves. Each is run once a worker."""
    known: dict[str, dict[str, object]] = {}

    def of(stage: str) -> dict[str, object]:
        if stage not in known:
            folder = tmp_path_factory.mktemp("whole") / "out"
            succeeded(truing(stage, folder))
            known[stage] = left_by(stage, folder)
        return known[stage]

    return of


@pytest.fixture(scope="session")
def gentle(tmp_path_factory):
    """stage -> the output of its unbroken run at a rate that does not magnify rounding."""
    known: dict[str, Path] = {}

    def of(stage: str) -> Path:
        if stage not in known:
            known[stage] = tmp_path_factory.mktemp("gentle") / "out"
            succeeded(truing(stage, known[stage], *GENTLE))
        return known[stage]

    return of


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a run goes; its data and what it said lie beside it."""
    return tmp_path / "out"


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory) -> Path:
    """The model of all runs, as a folder. Copy it before you break it."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    model = loading.load_causal("random:llama", torch.float32)
    saving.save_policy(folder, model, tiny.byte_tokenizer(), torch.float32)
    return folder
