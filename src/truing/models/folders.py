"""What a model folder must be before anything of it is opened: whole, and nothing to execute.

A folder from elsewhere is a stranger's. Refused unread: pickled weights, code of its own
(`auto_map`), links and shards that lead out of it, weights whose header is not one. There is no
option to trust a folder: what Truing cannot read as data it does not read.

A link may lead anywhere inside the folder, and from a snapshot of the hub's cache to the same
model's files (`models--org--name/blobs`), as the hub's own client makes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from truing.errors import ModelError, UnsafeFileError

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
INDEX = "model.safetensors.index.json"
TEMPLATES = "additional_chat_templates"
"""The only folder in a model's folder that transformers reads."""


def check_folder(folder: Path) -> None:
    """Raises ModelError or UnsafeFileError for a folder that is no model, or not only data."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            "the folder has no config.json", where=str(folder), remedy="give a model's own folder"
        )
    _check_links(folder)
    for file in sorted(folder.glob("*config.json")):
        refuse_code(_read(file), str(file))
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        _refuse_pickled(folder)
        raise ModelError(
            "the folder has no weights",
            where=str(folder),
            remedy="put model.safetensors (or its shards and index) beside config.json",
        )
    for file in weights:
        check_header(file)
    if (folder / INDEX).is_file():
        _check_index(folder / INDEX)


def refuse_code(config: Mapping[str, Any], where: str) -> None:
    """Raises UnsafeFileError for a configuration that names code to be loaded with it."""
    if config.get("auto_map"):
        raise UnsafeFileError(
            "it names Python code of its own (auto_map), which loading it would run",
            where=where,
            remedy="Truing runs no code of a model, not even at a pinned revision: use a model "
            "whose architecture transformers has itself, and take auto_map out of the file",
        )


def check_header(file: Path) -> None:
    """Raises ModelError for a safetensors file whose header does not describe what follows it."""
    try:
        with safe_open(file, "pt"):
            return
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"the weights cannot be read: {error}",
            where=str(file),
            remedy="the file is cut or damaged: copy or download it again",
        ) from error


def _refuse_pickled(folder: Path) -> None:
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
    if pickled:
        raise UnsafeFileError(
            f"the weights are pickled ({pickled[0]}): reading them would run code in them",
            where=str(folder),
            remedy="convert them to safetensors where you trust them: "
            "model.save_pretrained(folder) with transformers",
        )


def _check_links(folder: Path) -> None:
    """No file is a link to a file of someone else's."""
    home = folder.resolve()
    if home.parent.name == "snapshots":  # the hub's cache: snapshots link to ../../blobs
        home = home.parent.parent
    for entry in [*folder.iterdir(), *folder.glob(f"{TEMPLATES}/*")]:
        if entry.is_symlink() and not entry.resolve().is_relative_to(home):
            raise ModelError(
                f"a link that leads out of the folder, to {entry.resolve()}",
                where=str(entry),
                remedy="put the file itself there, or give the folder that it lies in",
            )


def _check_index(index: Path) -> None:
    """The index names files of this folder, and they are there."""
    shards = _read(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ModelError("it has no weight_map", where=str(index), remedy="copy the file again")
    for name in sorted(set(_strings(shards, index))):
        if Path(name).name != name:
            raise ModelError(
                f"it names weights outside of the folder: {name}",
                where=str(index),
                remedy="put the shards beside their index",
            )
        if not (index.parent / name).is_file():
            raise ModelError(
                f"{name} is not there",
                where=str(index),
                remedy="copy or download the missing shard",
            )


def _strings(shards: Mapping[str, Any], index: Path) -> Iterator[str]:
    for weight, name in shards.items():
        if not isinstance(name, str):
            raise ModelError(
                f"the file of {weight} is no name", where=str(index), remedy="copy the file again"
            )
        yield name


def _read(file: Path) -> dict[str, Any]:
    """A configuration. Raises ModelError."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"it cannot be read: {error}", where=str(file), remedy="copy or download it again"
        ) from error
    if not isinstance(found, dict):
        raise ModelError("it is no JSON object", where=str(file), remedy="copy it again")
    return found
