"""docs/extending.md does what it says: its files are written out, tested, run, found by name."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys

import pytest

import truing
from truing import objectives
from truing.explain import explain
from truing.rundir import RunDirectory


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """The page's files in a folder of their own."""
    page = (root / "docs" / "extending.md").read_text(encoding="utf-8")
    files = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in files] == [
        "squared_hinge.py",
        "test_squared_hinge.py",
        "squared_hinge.yaml",
    ]
    folder = tmp_path_factory.mktemp("plugin")
    for name, text in files:
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_its_own_test_passes(folder):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 passed" in result.stdout


def test_it_trains_from_outside_as_module_and_class(folder, root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(folder)
    recipe = folder / "squared_hinge.yaml"
    summary = truing.run(recipe, f"output={tmp_path / 'run'}", quiet=True)
    assert summary.first_step["decided"]["loss"] == pytest.approx(0.25, abs=1e-5)  # margin²
    run = RunDirectory(tmp_path / "run" / "decided")
    assert run.info().steps == 3
    losses = [row["loss"] for row in run.metrics() if row["step"]]
    assert len(losses) == 3
    assert losses[-1] != losses[0]
    with pytest.raises(truing.TruingError, match="greater than 0"):
        truing.run(recipe, f"output={tmp_path / 'no'}", "stages.decided.margin=-1", quiet=True)
    card = " ".join(explain("squared_hinge:SquaredHinge").split())
    assert "decided by the margin is left alone" in card
    assert "method: squared_hinge:SquaredHinge" in card
    assert "margin = 1" in card


def test_in_the_house_it_is_found_by_its_file_name(folder, tmp_path, monkeypatch):
    """As if the file lay in objectives/: a folder more to look in."""
    shutil.copy(folder / "squared_hinge.py", tmp_path)
    places = [*objectives.__path__, str(tmp_path)]
    monkeypatch.setattr(objectives, "__path__", places)
    monkeypatch.setattr(objectives.__spec__, "submodule_search_locations", places)
    importlib.invalidate_caches()
    assert "squared_hinge" in objectives.methods()
    kind = objectives.find("squared_hinge")
    assert kind.__module__ == "truing.objectives.squared_hinge"
    assert kind().margin == 1.0
