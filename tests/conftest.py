"""Shared by all rooms: where the checkout is, and one thread a worker (workers share the cores)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

pytest_plugins = ["faults.figure"]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test writes into a person's cache folder."""
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path_factory.mktemp("cache")))
