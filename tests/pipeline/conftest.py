"""One run of recipes/tiny.yaml for all tests of this room."""

from __future__ import annotations

import pytest

import truing


@pytest.fixture(scope="session")
def tiny_run(root, tmp_path_factory):
    """(summary, output folder) of the tiny recipe."""
    output = tmp_path_factory.mktemp("tiny") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        summary = truing.run("recipes/tiny.yaml", f"output={output}", quiet=True)
    return summary, output
