"""Two language models as one to draw from: their geometric mixture, token by token.

    p(v | x, y_<t) ∝ π(v | ·)^(1 − m) · ref(v | ·)^m

Logits are logs of probabilities up to a constant, so the mixture's logits are (1 − m) times the
one's plus m times the other's: one product of the two states side by side with the two head
matrices side by side. To an engine it looks like one model with the layers of both.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from truing.models.attention import Layout
from truing.models.network import Network


class Mixture:
    """What engines read of a `Network`, of the mixture of two. Shapes as theirs; m in [0, 1]."""

    def __init__(
        self, policy: Network, reference: Callable[[], AbstractContextManager[Network]], m: float
    ) -> None:
        self.base = policy.base
        """Its configuration says how the models attend; both do alike."""
        self.trunk = _Trunks(policy, reference, m)
        with reference() as network:
            theirs = network.vocabulary_weight
        self.vocabulary_weight = torch.cat([policy.vocabulary_weight, theirs], 1).detach()


class _Trunks:
    """Both trunks on the same tokens; their states side by side, weighted."""

    def __init__(
        self, policy: Network, reference: Callable[[], AbstractContextManager[Network]], m: float
    ) -> None:
        self.policy, self.reference, self.m = policy, reference, m
        layers: int = policy.base.config.num_hidden_layers
        self.layers = layers
        self.config = SimpleNamespace(
            num_hidden_layers=2 * layers, model_type=policy.base.config.model_type
        )

    def __call__(self, *, layout: Layout, **given: Any) -> Any:
        own: Tensor = self.policy.trunk(layout=layout, **given).last_hidden_state
        with self.reference() as network:
            above = _Above(layout, self.layers)
            theirs: Tensor = network.trunk(layout=above, **given).last_hidden_state
        mixed = torch.cat([(1 - self.m) * own, self.m * theirs], -1)
        return SimpleNamespace(last_hidden_state=mixed)


class _Above:
    """The same layout for further layers, so that they keep keys and values of their own."""

    def __init__(self, layout: Layout, first: int) -> None:
        self.layout, self.first = layout, first

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        return self.layout(self.first + layer, query, key, value, scale)
