"""checkpoint-N folders of a run: written whole, found newest first, kept in a small number.

    checkpoint-120/
      model.safetensors, config.json, tokenizer ...   what from_pretrained opens (or an adapter)
      state/numbers.json                               step, schedule, positions, random states
      state/*.safetensors                              masters, moments, averages, rollout: a part
                                                       that is large in several files
      manifest.json                                    sizes and SHA-256 of all of them

No pickle is written or read.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from truing.errors import CheckpointError
from truing.rundir import checkpoints
from truing.storage import (
    DISK,
    Disk,
    read_back_differs,
    read_manifest,
    sweep,
    write_checked,
    write_folder,
    writing,
)

STATE_FOLDER, NUMBERS_FILE = "state", "numbers.json"
NUMBERED = re.compile(r"-\d+-of-\d+$")
"""What the file of a part is called after its name where it is one of several."""
SHARD = 2**27
"""Bytes of a file of state, unless one tensor is more: what a save takes of the kernel's memory."""


@dataclass(slots=True)
class State:
    """Everything that a run goes on from: JSON numbers and tensors, by part."""

    numbers: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Part (`masters`, `moments`, ...) -> name -> tensor."""

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(t.nbytes for part in self.tensors.values() for t in part.values())


def save_checkpoint(
    run: Path,
    step: int,
    state: State,
    export: Callable[[Path], None],
    facts: Mapping[str, Any],
    *,
    keep: int,
    disk: Disk = DISK,
) -> Path:
    """Write checkpoint-STEP, read it back, then remove all but the newest `keep`.

    `export` writes what others open. Raises ResourceError if it cannot be written.
    """
    folder = run / f"checkpoint-{step}"

    def fill(beside: Path) -> Iterator[Path]:
        inner = beside / STATE_FOLDER
        disk.make_folder(inner)
        numbers = json.dumps(state.numbers, allow_nan=False).encode()
        write_checked(inner / NUMBERS_FILE, numbers, disk)
        yield from _write_tensors(inner, state.tensors, disk)
        export(beside)

    write_folder(folder, fill, {"step": step, **facts}, needs_bytes=2 * state.size, disk=disk)
    with writing(run):
        for old in checkpoints(run)[keep:]:
            disk.remove_folder(old)
    return folder


def _write_tensors(
    folder: Path, parts: Mapping[str, Mapping[str, Tensor]], disk: Disk
) -> Iterator[Path]:
    """PART.safetensors, or PART-00001-of-00009.safetensors and so on. Each file is compared with
    memory after its digest was taken, so that nothing can come between the two, and is let go of
    by the kernel before the next one is begun."""
    for part, tensors in parts.items():
        split = split_torch_state_dict_into_shards(
            dict(tensors), filename_pattern=f"{part}{{suffix}}.safetensors", max_shard_size=SHARD
        )
        # a part without tensors is a part, too
        files = split.filename_to_tensors or {f"{part}.safetensors": []}
        for file, names in files.items():
            path = folder / file
            own = {name: tensors[name].detach().cpu().contiguous() for name in names}
            disk.write_by(partial(save_file, own), path)
            yield path  # who takes it syncs it and takes its digest
            _read_back(path, own)
            disk.release(path)


def _read_back(path: Path, expected: Mapping[str, Tensor]) -> None:
    """Raises ResourceError unless the file holds these tensors and no others, bit for bit."""
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise read_back_differs(path, str(error)) from error
    if different := sorted(found.keys() ^ expected.keys()):
        raise read_back_differs(path, different[0])
    for name, tensor in expected.items():
        alike = (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        if not alike or not np.array_equal(_bytes(found[name]), _bytes(tensor)):
            raise read_back_differs(path, name)


def _bytes(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy()


def newest(run: Path, expected: Mapping[str, Any], say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; None if there never was one.

    What lies around half-written is removed, and what is damaged if an older one is whole. Raises
    CheckpointError if there are checkpoints and none is whole, or if the newest whole one is of
    another run (its facts are not `expected`).
    """
    sweep(run)
    folders, damaged = checkpoints(run), []
    for folder in folders:
        try:
            facts = read_manifest(folder)
        except CheckpointError as error:
            say(f"{folder.name} is damaged and is not used: {error.where}: {error.what}")
            damaged.append(folder)
            continue
        for name, value in expected.items():
            if facts.get(name) != value:
                raise CheckpointError(
                    f"it was made with {name} {facts.get(name)!r}, this run has {value!r}",
                    where=str(folder),
                    remedy="undo the change, or give another output; --overwrite starts over",
                )
        for unusable in damaged:  # else they would count among the newest that are kept
            shutil.rmtree(unusable)
        return folder
    if folders:
        raise CheckpointError(
            f"none of {len(folders)} checkpoints is whole",
            where=str(run),
            remedy="--overwrite starts over; nothing is restarted silently",
        )
    return None


def load_state(folder: Path) -> State:
    """The state of a checkpoint that was found whole. Raises CheckpointError."""
    inner = folder / STATE_FOLDER
    try:
        numbers = json.loads((inner / NUMBERS_FILE).read_bytes())
        parts: dict[str, dict[str, Tensor]] = {}
        for path in sorted(inner.glob("*.safetensors")):
            parts.setdefault(NUMBERED.sub("", path.stem), {}).update(load_file(path))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"the state cannot be read ({error})", where=str(folder), remedy="remove this folder"
        ) from error
    return State(numbers, parts)
