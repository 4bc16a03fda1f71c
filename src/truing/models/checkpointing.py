"""Gradient checkpointing: a layer keeps its input only, and is computed again in the backward pass.

Ours and not transformers' switch: that one works in train mode only, which would turn dropout on,
and takes the cache away from layers that decode. This one acts where a gradient is recorded, so the
same network samples and measures as before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from truing.errors import ModelError


def checkpoint_layers(trunk: nn.Module) -> None:
    """From now on keep no activations inside the trunk's layers, at the cost of one more forward
    pass. Loss and gradients stay the same to the last bit.

    Raises ModelError for a model whose layers transformers does not mark.
    """
    layers = [m for m in trunk.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            "its layers cannot be told apart, so none can be computed again",
            where=type(trunk).__name__,
            remedy="set gradient_checkpointing to false",
        )
    for layer in layers:
        layer.forward = _checkpointed(layer.forward)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # nothing random happens in a layer (dropout is off), so no random state is kept
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
