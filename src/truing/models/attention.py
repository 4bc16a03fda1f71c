"""The one attention function of the house, registered with transformers as "truing".

Any model of the library can train with shared prompts and decode from our slots without patches:
the model hands the `layout` it was called with on to its attention, which asks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from truing.errors import ModelError

NAME = "truing"


class Layout(Protocol):
    """How the tokens of one call lie, and so what each of them sees."""

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        """Attention of one layer: query [rows, heads, queries, d], key and value [rows, key
        heads, queries, d] of the tokens of this call -> [rows, queries, heads, d]."""


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """softmax(q kᵀ · scaling + mask) v, as the layout says, or by a mask.

    Shapes: query [rows, heads, queries, d], key and value [rows, key heads, keys, d], mask
    [rows, 1, queries, keys], True where a query sees a key, or None for causal. Returns
    [rows, queries, heads, d]. Raises ModelError for soft caps, sinks and biases, and for a mask
    of the model's own beside a layout.
    """
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if more.get(name) is not None]
    if layout is not None and attention_mask is not None and attention_mask.numel() != 1:
        unknown.append("mask of its own")
    if unknown:
        raise ModelError(
            f"its attention has a {unknown[0]}, which ours has not",
            where=type(module).__name__,
            remedy="use a model with plain softmax attention (Llama, Qwen, GPT-2, NeoX, ...)",
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layout is not None:
        layer: Any = module.layer_idx
        return layout(layer, query, key, value, scale), None
    if attention_mask is None:
        queries, keys = query.shape[2], key.shape[2]
        attention_mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(
            keys - queries
        )[None, None]
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attention_mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    return mixed.transpose(1, 2).contiguous(), None


def check_asked(trunk: Any, asked: Sequence[int]) -> None:
    """Raises ModelError unless every layer, from the first that was computed, asked exactly once.

    A layer that does not ask (state spaces, attention of its own) would let groups see each other;
    one that asks twice would have its keys taken for another's.
    """
    layers: int = trunk.config.num_hidden_layers
    if list(asked) != list(range(layers - len(asked), layers)) or (layers and not asked):
        raise ModelError(
            f"{len(asked)} of its {layers} layers asked our attention, each should once",
            where=trunk.config.model_type,
            remedy="use a model of softmax attention layers (Llama, Qwen, GPT-2, NeoX, ...)",
        )


def _always_a_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """transformers' boolean mask, never skipped in favour of a kernel's causal flag."""
    mask: Tensor | None = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
    return mask


def register() -> None:
    """Make `attn_implementation="truing"` known to transformers."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _always_a_mask)


def no_mask(device: torch.device) -> Tensor:
    """What a model is given in place of a mask where a layout decides: it makes none itself."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
