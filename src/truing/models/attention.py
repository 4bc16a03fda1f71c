"""The one attention function of the house, registered with transformers as "truing".

It takes the mask it is given, so any model of the library can train with shared prompts and
decode from a cache without patches. Heads that share keys are folded into the query axis, so
keys are never repeated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from truing.batch import Batch
from truing.errors import ModelError

NAME = "truing"
WRITTEN_OUT_TOKENS = 256
"""Up to this many keys, on a CPU, two matmuls and a softmax beat the fused kernel's backward
(measured in bench/attention.py); beyond, the fused kernel saves the T² memory."""


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """softmax(q kᵀ · scaling + mask) v, softmax in float32 or better.

    Shapes: query [rows, heads, queries, d], key and value [rows, key heads, keys, d], mask
    [rows, 1, queries, keys], True where a query sees a key, or None for causal. Returns
    [rows, queries, heads, d]. Raises ModelError for soft caps and attention sinks.
    """
    unknown = [name for name in ("softcap", "s_aux") if more.get(name) is not None]
    if unknown:
        raise ModelError(
            f"its attention has a {unknown[0]}, which ours has not",
            where=type(module).__name__,
            remedy="use a model with plain softmax attention (Llama, Qwen, GPT-2, NeoX, ...)",
        )
    rows, heads, queries, size = query.shape
    key_heads, keys = key.shape[1], key.shape[2]
    if attention_mask is None:
        attention_mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(
            keys - queries
        )[None, None]
    scale = size**-0.5 if scaling is None else scaling
    if query.device.type != "cpu" or keys > WRITTEN_OUT_TOKENS:
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scale, enable_gqa=heads != key_heads
        )
        return mixed.transpose(1, 2).contiguous(), None
    folded = (query * scale).reshape(rows, key_heads, heads // key_heads * queries, size)
    logits = (folded @ key.transpose(2, 3)).view(rows, key_heads, -1, queries, keys)
    hidden = logits.new_zeros(attention_mask.shape)
    hidden.masked_fill_(~attention_mask, torch.finfo(logits.dtype).min)
    precision = torch.promote_types(logits.dtype, torch.float32)
    weights = torch.softmax(logits + hidden[:, :, None], dim=-1, dtype=precision)
    mixed = weights.to(value.dtype).view(rows, key_heads, -1, keys) @ value
    return mixed.view(rows, heads, queries, size).transpose(1, 2).contiguous(), None


def _always_a_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """transformers' boolean mask, never skipped in favour of a kernel's causal flag."""
    mask: Tensor | None = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
    return mask


def register() -> None:
    """Make `attn_implementation="truing"` known to transformers."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _always_a_mask)


def shared_prompt_mask(batch: Batch) -> Tensor:
    """True where a query sees a key: same group, not after it, branch 0 or its own.

    Shape [R, 1, T, T]. Padding sees itself only, so that no row of the softmax is empty.
    """
    group_RT, branch_RT = batch.group_RT, batch.branch_RT
    width = group_RT.shape[1]
    same_group = group_RT[:, :, None] == group_RT[:, None, :]
    key_branch = branch_RT[:, None, :]
    visible = (key_branch == 0) | (key_branch == branch_RT[:, :, None])
    real = (group_RT >= 0)[:, :, None]
    order = torch.ones(width, width, dtype=torch.bool, device=group_RT.device).tril()
    itself = torch.eye(width, dtype=torch.bool, device=group_RT.device)
    return ((same_group & visible & real & order) | itself)[:, None]
