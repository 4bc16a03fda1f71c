"""Which of our files a stage's result comes from, and the hash of what they say.

A stage uses what its modules import, and what those import. Objectives and rewards are found by
name, not imported: each stage adds its own, so that a change to DPO makes no PPO stage new.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import truing

PACKAGE = Path(truing.__file__).parent


def code_version(modules: Iterable[str], files: Iterable[Path] = ()) -> str:
    """Hash of the sources of these modules of ours, of all they import, and of `files`."""
    paths = {PACKAGE / "__init__.py", *files}
    waiting = list(modules)
    while waiting:
        path = _file_of(waiting.pop())
        if path is not None and path not in paths:
            paths.add(path)
            waiting += _imports(path)
    hasher = hashlib.sha256()
    for path in sorted(paths):
        hasher.update(path.name.encode() + b"\0" + path.read_bytes())
    return hasher.hexdigest()[:16]


def room(name: str) -> list[Path]:
    """Every source file of a room."""
    return sorted((PACKAGE / name).rglob("*.py"))


def _file_of(module: str) -> Path | None:
    """The file of a module of ours; of `truing.x.name`, where `name` is no module, that of x."""
    parts = module.split(".")
    if parts[0] != "truing":
        return None
    for end in (parts[1:], parts[1:-1]):
        for path in (
            PACKAGE.joinpath(*end).with_suffix(".py"),
            PACKAGE.joinpath(*end, "__init__.py"),
        ):
            if end and path.is_file():
                return path
    return None


@cache
def _imports(path: Path) -> tuple[str, ...]:
    return tuple(_imported(ast.parse(path.read_bytes())))


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
