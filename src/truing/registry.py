"""Plug-ins are found by file name: `objectives/dpo.py` is "dpo". There is no table to edit.

A plug-in module defines exactly one public class derived from its room's base class. Outsiders
name theirs as `module:Class`. Listing names imports nothing, so it is fast and needs no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import TypeVar

from truing.errors import UsageError, suggest

T = TypeVar("T")


def names(package: str) -> dict[str, str]:
    """Plug-in name -> module path, for every file below `package` (folders only group them)."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    found: dict[str, str] = {}
    for location in spec.submodule_search_locations:
        root = Path(location)
        for path in sorted(root.rglob("*.py")):
            module = path.relative_to(root).with_suffix("")
            if path.stem.startswith("_") or path.stem == "base":
                continue
            found[path.stem] = ".".join((package, *module.parts))
    return found


def find(package: str, name: str, base: type[T]) -> type[T]:
    """The class behind `name`: a plug-in of `package`, or `module:Class` from outside.

    Raises UsageError with the valid names if there is none.
    """
    if ":" in name:
        module_name, _, class_name = name.partition(":")
        try:
            plugin = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError) as error:
            raise UsageError(
                f"cannot import '{name}' ({error})",
                remedy="give module:Class with the module on the Python path",
            ) from error
        if not (inspect.isclass(plugin) and issubclass(plugin, base)):
            raise UsageError(
                f"'{name}' is not a {base.__name__}", remedy=f"derive it from {base.__module__}"
            )
        return plugin
    known = names(package)
    if name not in known:
        room = package.rpartition(".")[2]
        raise UsageError(f"unknown name '{name}' in {room}", remedy=suggest(name, known))
    return only_class(known[name], base)


def only_class(module_name: str, base: type[T]) -> type[T]:
    """The one public class of a plug-in module."""
    module = importlib.import_module(module_name)
    classes = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, base) and member.__module__ == module_name
    ]
    assert len(classes) == 1, f"{module_name} must define one {base.__name__}, found {classes}"
    return classes[0]
