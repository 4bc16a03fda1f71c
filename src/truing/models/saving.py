"""Weights that others can open: safetensors at the root of a run directory.

A policy opens with AutoModelForCausalLM, a reward model with AutoModelForSequenceClassification.
Adapters are merged in float32 and also kept as they are, in `adapter/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from truing.errors import ModelError
from truing.models import loading
from truing.models.heads import ScalarHead
from truing.models.network import Network
from truing.models.quiet import quiet

ADAPTER_FOLDER, ADAPTER_FILE = "adapter", "adapter_model.safetensors"
SCORE_HEAD_FILE, VALUE_HEAD_FILE = "score_head.safetensors", "value_head.safetensors"


def merged(
    source: str,
    masters: Mapping[str, Tensor],
    lora: LoraConfig | None,
    adapter_to: Path,
    revision: str | None = None,
) -> PreTrainedModel:
    """The trained model in float32: the source's, with the masters themselves in their places.

    With `lora` the adapter is first saved to `adapter_to`, then merged. Without it every weight
    that is saved has a master, and the source's own are not loaded: those without one (a
    language-model head above a reward model) are on the meta device.
    """
    source_model = None if lora is not None else loading.empty_causal(source, revision)
    if source_model is None:
        source_model = loading.load_causal(source, torch.float32, revision)
    network = Network(source_model, lora=lora)
    for name, parameter in network.named_parameters():
        if name in masters:  # one object for tied weights: both read the master then
            own = nn.Parameter(masters[name], requires_grad=False)
            torch.utils.swap_tensors(parameter, own)  # type: ignore[no-untyped-call]
    if network.peft is None:
        return network.base
    network.peft.save_pretrained(adapter_to)
    model: PreTrainedModel = network.peft.merge_and_unload()
    return model


def save_policy(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype
) -> None:
    """A causal language model and its tokenizer at the root of `folder`."""
    with quiet():
        model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_scorer(
    folder: Path,
    model: PreTrainedModel,
    head: ScalarHead,
    tokenizer: PreTrainedTokenizerFast,
    stop_id: int,
    dtype: torch.dtype,
) -> None:
    """The trunk of `model` and `head` as a one-label sequence classifier.

    transformers finds the token it pools by looking for the last one that is not padding. So the
    padding id written here is never the stop token, which is the token we score at.
    """
    config = type(model.config).from_dict(model.config.to_dict())
    config.num_labels = 1
    config.pad_token_id = padding_id(tokenizer, stop_id)
    with torch.device("meta"):  # all its weights are others'
        scorer = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    prefix = model.base_model_prefix
    setattr(scorer, prefix, getattr(model, prefix))
    scorer.score.weight = nn.Parameter(head.weight.detach(), requires_grad=False)
    with quiet():
        scorer.to(dtype).save_pretrained(folder)
    tokenizer.pad_token_id = config.pad_token_id
    tokenizer.save_pretrained(folder)


def padding_id(tokenizer: PreTrainedTokenizerFast, stop_id: int) -> int:
    """A padding id that is not the stop token. Raises ModelError if the tokenizer has none."""
    candidates = [tokenizer.pad_token_id, tokenizer.unk_token_id, *tokenizer.all_special_ids]
    usable = [i for i in candidates if i is not None and i != stop_id]
    if not usable:
        raise ModelError(
            "the tokenizer has no special token besides the stop token to pad with",
            remedy="add one: tokenizer.add_special_tokens({'pad_token': '<|pad|>'})",
        )
    return int(usable[0])


def save_head(path: Path, head: ScalarHead) -> None:
    """A head's own parameters."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().cpu().float().contiguous() for name, p in head.named_parameters()}
    save_file(tensors, path)


def head_of(masters: Mapping[str, Tensor], name: str) -> ScalarHead:
    """The head called `name` of a network, from its masters."""
    start = f"{name}."
    own = {key.removeprefix(start): t for key, t in masters.items() if key.startswith(start)}
    head = ScalarHead(own["weight"][0], bias="bias" in own)
    head.load_state_dict(own)
    return head


def load_head(path: Path) -> ScalarHead:
    """A head that `save_head` wrote."""
    tensors = load_file(path)
    head = ScalarHead(tensors["weight"][0], bias="bias" in tensors)
    head.load_state_dict(tensors)
    return head
