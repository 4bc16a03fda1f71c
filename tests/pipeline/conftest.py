"""One run of recipes/tiny.yaml for all tests of this room, and runs of a few rows."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

import truing
from truing.config import check_recipe
from truing.pipeline.run import run_recipe


@pytest.fixture(scope="session")
def tiny_run(root, tmp_path_factory):
    """(summary, output folder) of the tiny recipe."""
    output = tmp_path_factory.mktemp("tiny") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        summary = truing.run("recipes/tiny.yaml", f"output={output}", quiet=True)
    return summary, output


@pytest.fixture
def run(tmp_path):
    """Train on rows, with others held out. Returns (output folder, what was said)."""

    def run(train, test, **stages):
        data = {}
        for name, rows in {"path": train, "test_path": test}.items():
            file = tmp_path / f"{name}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            data[name] = str(file)
        raw = {
            "name": "small",
            "output": str(tmp_path / "out"),
            "model": {"path": "random:llama", "dtype": "float32"},
            "data": data,
            "stages": {name: {"max_steps": 1} | stage for name, stage in stages.items()},
        }
        said = io.StringIO()
        recipe = check_recipe(raw, "recipe")
        console = Console(file=said, width=200)
        output = run_recipe(recipe, where="recipe", resume=False, overwrite=False, console=console)
        return output, said.getvalue()

    return run
