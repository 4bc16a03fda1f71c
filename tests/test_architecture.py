"""The house: imports point down, islands stay torch-free, files stay short, names are public."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import truing
from truing import objectives

SOURCE = Path(truing.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

LAYERS = {
    0: {"errors", "groups", "batch", "memory", "ops", "registry", "storage"},
    1: {"config", "rundir", "data", "models", "objectives", "rewards", "planning", "exact"},
    2: {"rollouts", "runs"},
    3: {"training", "evaluation"},
    4: {"pipeline"},
    5: {"api", "verbs", "explain", "cli", "cli_runs", "__main__"},
}
LEVEL = {room: level for level, rooms in LAYERS.items() for room in rooms}
METHODS = set(objectives.methods())
TORCH_FREE = (
    "truing",
    "truing.groups",
    "truing.config",
    "truing.rundir",
    "truing.storage",
    "truing.runs.upkeep",
    "truing.cli_runs",
    "truing.errors",
    "truing.registry",
    "truing.cli",
    "truing.objectives",
    "truing.rewards",
    "truing.planning.flops",
    "truing.data.readers",
    "truing.data.formats",
    "truing.data.splits",
    "truing.pipeline.graph",
    "truing.evaluation.summary",
    "truing.evaluation.report",
)


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def module_of(path: Path) -> str:
    parts = ("truing", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Modules of ours a file imports when it runs (also inside functions), not for types only."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("truing"):
            if node.module == "truing":
                found |= {f"truing.{alias.name}" for alias in node.names}
            else:
                found.add(str(node.module))
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("truing")}
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_down_and_siblings_of_level_one_do_not_meet(path):
    room = room_of(module_of(path))
    if not room:
        return  # the package's own list of names
    for imported in imports_of(path):
        other = room_of(imported)
        if other in ("", room) or other.startswith("__"):
            continue
        assert LEVEL[other] <= LEVEL[room], f"{room} imports up: {imported}"
        if LEVEL[room] == 1:
            assert LEVEL[other] == 0, f"{room} and {other} are siblings"


def test_every_room_has_a_level():
    rooms = {
        p.stem if p.is_file() else p.name
        for p in SOURCE.iterdir()
        if p.suffix == ".py" or (p.is_dir() and any(p.glob("*.py")))
    }
    assert rooms - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_islands_import_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def functions() -> list[tuple[int, str]]:
    return [
        (node.end_lineno - node.lineno + 1, f"{path.name}:{node.name}")
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_size_budget():
    lengths = sorted(functions())
    assert lengths[-1][0] <= 60, lengths[-3:]
    assert statistics.quantiles([n for n, _ in lengths], n=10)[-1] <= 35
    files = {path.name: path.read_text(encoding="utf-8").count("\n") for path in FILES}
    assert max(files.values()) <= 400, max(files, key=files.__getitem__)
    assert statistics.median(files.values()) <= 150


def test_a_plugin_is_one_page():
    """60 lines are usual, 120 the most (a credit rule: 160). Files with `_` are shared parts."""
    for room, most in (("objectives", 120), ("rewards", 120), ("credit", 160)):
        plugins = [p for p in FILES if room in p.parts and p.stem[0] != "_" and p.stem != "base"]
        lengths = {p.name: p.read_text(encoding="utf-8").count("\n") for p in plugins}
        assert max(lengths.values()) <= most, max(lengths, key=lengths.__getitem__)
        if room == "objectives":
            assert statistics.median(lengths.values()) <= 60


def test_nothing_asks_for_a_method_by_name():
    """Methods are told apart by what they declare, never by what they are called."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Compare):
                continue
            compared = {
                c.value
                for part in (node.left, *node.comparators)
                for c in ast.walk(part)
                if isinstance(c, ast.Constant) and isinstance(c.value, str)
            }
            assert not compared & METHODS, f"{path.name}:{node.lineno}"


def test_no_code_reads_pickles():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "torch.load" not in text, path.name
        assert "import pickle" not in text, path.name


def test_public_names_are_there_and_listed():
    assert sorted(truing.__all__) == truing.__all__
    for name in truing.__all__:
        assert getattr(truing, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = truing.nothing


def test_public_functions_say_what_they_do():
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{path.name} has no docstring"
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}:{node.name}"
