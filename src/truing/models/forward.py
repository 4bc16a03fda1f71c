"""Batch to hidden states. Two ways that agree to rounding.

`shared`: one pass over all tokens, each prompt computed once and seen by its completions.
`unshared`: one completion a row, right padded, the model's own attention: the oracle, and the
way for models whose attention cannot be told what to see (a sliding window shorter than the text).

    T tokens · N predicted tokens · C completions · H hidden size
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from truing.batch import Batch
from truing.models.attention import check_asked, no_mask
from truing.models.shared_prompts import SharedPrompts


def hidden_states(trunk: nn.Module, batch: Batch) -> Tensor:
    """Final hidden state of every token: [T, H]."""
    if not serves(trunk, batch):
        return unshared_hidden_states(trunk, batch)
    layout = SharedPrompts(batch)
    output = trunk(
        input_ids=batch.tokens_T[None],
        attention_mask=no_mask(batch.tokens_T.device),
        position_ids=batch.positions_T[None],
        use_cache=False,
        layout=layout,
    )
    check_asked(trunk, layout.asked)
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


def serves(trunk: nn.Module, batch: Batch) -> bool:
    """Whether this batch can go through the trunk with shared prompts."""
    return takes_shared_prompts(trunk.config, int(batch.positions_T.max()) + 1)


def takes_shared_prompts(config: Any, positions: int) -> bool:
    """Whether full attention is what this model does over so many positions."""
    if getattr(config, "v_head_dim", None) is not None:
        return False  # values of another size than keys: our blocks hold both alike
    windows = [
        getattr(config, "sliding_window", None),
        getattr(config, "attention_chunk_size", None),
    ]
    layers = getattr(config, "layer_types", None) or []
    if layers and all(layer == "full_attention" for layer in layers):
        return True
    if any(
        layer not in ("full_attention", "sliding_attention", "chunked_attention")
        for layer in layers
    ):
        return False  # state-space and linear-attention layers carry state along the row
    return all(window is None or positions <= window for window in windows)


def unshared_hidden_states(trunk: nn.Module, batch: Batch) -> Tensor:
    """The same states, each completion computed in a row of its own after its own prompt copy.

    A prompt is computed once per completion; its states are those of the first copy.
    """
    rows = [_row_of(batch, completion) for completion in range(batch.size_C)]
    width = max(row.numel() for row in rows)
    device = batch.tokens_T.device
    places = torch.full((len(rows), width), -1, device=device)
    for index, row in enumerate(rows):
        places[index, : row.numel()] = row
    real = places >= 0
    output = trunk(
        input_ids=batch.tokens_T[places.clamp(min=0)],
        attention_mask=real.long(),
        use_cache=False,
    )
    states = output.last_hidden_state
    return _first_copies(places[real], states[real], batch.size_T)


def _row_of(batch: Batch, completion: int) -> Tensor:
    """Where a completion's prompt and the completion itself are, in order."""
    target = batch.target_N[batch.completion_N == completion]
    group = batch.group_T == batch.group_C[completion]
    prompt = torch.nonzero(group & (batch.branch_T == 0))[:, 0]
    return torch.cat([prompt, target])


def _first_copies(places: Tensor, states: Tensor, size_T: int) -> Tensor:
    """Each position's state from the first row it is in: copies are equal, so value and gradient
    are exact. Prompts that nothing answers are in no row and stay 0."""
    rows = len(places)
    first_T = places.new_full((size_T,), rows).scatter_reduce(
        0, places, torch.arange(rows, device=places.device), "amin"
    )
    return torch.cat([states, states.new_zeros(1, states.shape[-1])])[first_T]
