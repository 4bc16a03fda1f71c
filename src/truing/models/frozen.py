"""The lowest layers, where nothing learns, computed once for every part a trunk plays.

With adapters on the last layers only, policy, reference and every later epoch enter the first
adapted layer with the same hidden states: they are computed once per batch and kept in its
column `frozen_TH`. (trlx calls the idea a hydra: several heads on one frozen body.)

T tokens · H hidden size
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class _EnoughError(Exception):
    """The layer was reached whose input was asked for."""


def frozen_layers(model: nn.Module) -> int:
    """How many of the lowest layers hold no adapter of any name; 0 without adapters."""
    places = [
        int(found[1])
        for name, _ in model.named_parameters()
        if ".lora_" in name and (found := re.search(r"\.(\d+)\.", name))
    ]
    return min(places, default=0)


@torch.no_grad()
def states_before(trunk: nn.Module, layer: int, run: Callable[[], Any]) -> Tensor:
    """The hidden states [T, H] that enter `layer` when `run` calls the trunk; nothing above it is
    computed."""
    found: list[Tensor] = []

    def stop(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        found.append(arguments[0][0])
        raise _EnoughError

    handle = _layers(trunk)[layer].register_forward_pre_hook(stop)
    try:
        run()
    except _EnoughError:
        return found[0]
    finally:
        handle.remove()
    raise AssertionError("the trunk never reached the layer")


@contextmanager
def starting_at(trunk: nn.Module, layer: int, states_TH: Tensor) -> Iterator[None]:
    """Inside, the trunk begins at `layer` with these states, and the layers below do nothing."""
    layers = _layers(trunk)

    def enter(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (states_TH[None], *arguments[1:])

    handle = layers[layer].register_forward_pre_hook(enter)
    forwards = [vars(below).get("forward") for below in layers[:layer]]
    for below in layers[:layer]:
        below.forward = _pass_on
    try:
        yield
    finally:
        handle.remove()
        for below, own in zip(layers[:layer], forwards, strict=True):
            if own is None:
                del below.forward
            else:
                below.forward = own


def _pass_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _layers(trunk: Any) -> Any:
    """The decoder layers: a list of that many modules, whatever the model calls it."""
    count = trunk.config.num_hidden_layers
    lists = (m for m in trunk.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    return next(lists)
