"""Where models come from: a folder, a hub id, a GGUF file or package, or random weights.

Nothing that would have to be executed is read: safetensors and GGUF only, no remote code.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from truing.errors import ModelError
from truing.models import allocator, attention, folders, fused, gguf, tiny
from truing.models.quiet import quiet

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def resolve(path: str, revision: str | None = None) -> str:
    """A model path as a folder (or hub id) that can be opened, checked without loading weights.

    `package:NAME` and `*.gguf` are converted once into the cache folder. Raises ModelError or
    UnsafeFileError: what, where, what to do.
    """
    if path.startswith(tiny.PREFIX):
        return path
    if path.startswith("package:"):
        return str(gguf.converted(gguf.of_package(path.removeprefix("package:"))))
    local = Path(path)
    if local.suffix == ".gguf":
        if not local.is_file():
            raise ModelError("no such file", where=path, remedy="check the path")
        return str(gguf.converted(local))
    if local.is_dir():
        folders.check_folder(local)
        return str(local)
    if local.exists() or path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ModelError(
            "not a model",
            where=path,
            remedy="give a folder with config.json and *.safetensors, a hub id (org/name), "
            "a .gguf file, package:NAME or random:llama",
        )
    if revision is not None and revision.startswith("-"):
        raise ModelError("not a revision", where=revision, remedy="give a commit, tag or branch")
    return path


def load_causal(path: str, dtype: torch.dtype, revision: str | None = None) -> PreTrainedModel:
    """A causal language model with our attention, in eval mode. `path` as `resolve` gave it."""
    attention.register()
    allocator.keep_freed_memory()
    if path.startswith(tiny.PREFIX):
        model = tiny.random_model(path.removeprefix(tiny.PREFIX), dtype, attention.NAME)
        fused.fuse(model)
        return model
    return _load(AutoModelForCausalLM, path, dtype, revision)


def empty_causal(path: str, revision: str | None = None) -> PreTrainedModel | None:
    """The model of `load_causal` in float32 without its weights, to put others in their places.

    None for a model that consists of more than weights: buffers that lie in its files. In a thread
    beside training it is safe: no default of torch is another one while it is built, as it is
    wherever transformers is asked for a precision that is not the default's.
    """
    if path.startswith(tiny.PREFIX):
        config = tiny.random_config(path.removeprefix(tiny.PREFIX))
    else:
        config = _config(path, revision)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = dict(model.named_parameters(remove_duplicate=False))
    if model.state_dict().keys() != weights.keys():
        return None
    with suppress(OSError):  # most have such a file; without one it follows from the configuration
        model.generation_config = GenerationConfig.from_pretrained(
            path, revision=revision or "main"
        )
    empty: PreTrainedModel = model
    return empty


def positions(path: str, revision: str | None = None) -> int | None:
    """Tokens of a prompt and its completion that a model has places for; None without a limit."""
    if path.startswith(tiny.PREFIX):
        config = tiny.random_config(path.removeprefix(tiny.PREFIX))
    else:
        config = _config(path, revision)
    found: int | None = getattr(config, "max_position_embeddings", None)
    return found


def load_scorer(path: str, dtype: torch.dtype) -> PreTrainedModel:
    """A one-label sequence classifier (a reward model) with our attention, in eval mode."""
    attention.register()
    allocator.keep_freed_memory()
    model = _load(transformers.AutoModelForSequenceClassification, path, dtype, None)
    if model.config.num_labels != 1:
        raise ModelError(
            f"a reward model has one label, this one has {model.config.num_labels}",
            where=path,
            remedy="give a folder that a bradley_terry stage left behind",
        )
    return model


def _load(auto: Any, path: str, dtype: torch.dtype, revision: str | None) -> PreTrainedModel:
    try:
        with quiet():
            model, report = auto.from_pretrained(
                path,
                dtype=dtype,
                revision=revision or "main",
                attn_implementation=attention.NAME,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except KeyError as error:
        raise ModelError(
            f"its attention cannot be replaced by ours ({error})",
            where=path,
            remedy="use a model whose attention transformers lets us exchange (Llama, Qwen, ...)",
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"cannot be loaded: {str(error).splitlines()[0]}",
            where=path,
            remedy="check the folder, or that the hub can be reached and the name is right",
        ) from error
    _check_whole(report, path, auto)
    fused.fuse(model)
    opened: PreTrainedModel = model.eval()
    return opened


def _check_whole(report: Mapping[str, Any], path: str, auto: Any) -> None:
    """transformers only warns where weights and model differ, and makes up what is missing. Names
    that are the same tensor (tied embeddings) are in neither list. Raises ModelError."""
    kinds = {
        "missing_keys": "the model has {n} weights that the files have not, such as {name}",
        "mismatched_keys": "{n} weights have another shape than the config says, such as {name}",
        "unexpected_keys": "the files have {n} weights the model has no place for, such as {name}",
    }
    for kind, what in kinds.items():
        if names := sorted(key if isinstance(key, str) else str(key[0]) for key in report[kind]):
            raise ModelError(
                what.format(n=len(names), name=names[0]),
                where=path,
                remedy=f"give the whole folder of a model that {auto.__name__} opens without a "
                "warning: nothing is filled in at random, and nothing left out",
            )


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer beside the weights. Raises ModelError if there is none, UnsafeFileError if it
    comes with code."""
    if path.startswith(tiny.PREFIX):
        return tiny.byte_tokenizer()
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                path, revision=revision or "main", trust_remote_code=False
            )
    except Exception as error:  # the file is foreign, and its parser raises plain Exceptions
        raise ModelError(
            f"no tokenizer: {(str(error) or type(error).__name__).splitlines()[0]}",
            where=path,
            remedy="put tokenizer.json and tokenizer_config.json beside the weights",
        ) from error
    folders.refuse_code(tokenizer.init_kwargs, path)
    _check_vocabulary(tokenizer, _config(path, revision), path)
    return tokenizer


def _check_vocabulary(tokenizer: PreTrainedTokenizerFast, config: Any, path: str) -> None:
    """Every id that a text can become has an embedding. Raises ModelError. The padding token may
    lie beyond them: nothing is padded, and it is often added to a tokenizer alone."""
    places: int | None = getattr(config.get_text_config(), "vocab_size", None)
    if places is None or len(tokenizer) <= places:
        return
    ids = tokenizer.get_vocab()
    beyond = [t for t, i in ids.items() if i >= places and t != tokenizer.pad_token]
    if beyond:
        raise ModelError(
            f"the tokenizer has {len(beyond):,} tokens beyond the model's vocabulary of "
            f"{places:,}, such as {min(beyond, key=ids.__getitem__)!r}",
            where=path,
            remedy="put the model's own tokenizer there, or a model whose embeddings were resized",
        )


def _config(path: str, revision: str | None) -> Any:
    """The configuration of a model. Raises ModelError, or UnsafeFileError if it names code."""
    try:
        config = AutoConfig.from_pretrained(
            path, revision=revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"its config cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}",
            where=path,
            remedy="check the folder, or that the hub can be reached and the name is right",
        ) from error
    folders.refuse_code(vars(config), path)
    return config


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The forward pass's precision: bfloat16 where the machine multiplies it natively."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu" and _cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float32


def _cpu_has_bfloat16() -> bool:
    """AMX or AVX512-BF16; emulated bfloat16 is slower than float32."""
    cpu = torch.cpu
    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def pick_device(name: str) -> torch.device:
    """The named device; 'auto' is the first accelerator there is, or the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
