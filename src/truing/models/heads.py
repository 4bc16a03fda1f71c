"""Linear heads that read one number off a hidden state, in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """hidden [*, H] -> [*]; float32 whatever the trunk's precision (float64 stays)."""

    def __init__(self, weight_H: Tensor, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_H[None].clone())
        self.bias = nn.Parameter(torch.zeros(1)) if bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        precise = hidden if hidden.dtype == torch.float64 else hidden.float()
        weight = self.weight.to(precise.dtype)
        bias = None if self.bias is None else self.bias.to(precise.dtype)
        return nn.functional.linear(precise, weight, bias).squeeze(-1)


def new_score_head(hidden_size: int, seed: int) -> ScalarHead:
    """A reward head, N(0, 0.01/(H+1)), no bias: the reward is free up to a constant anyway.

    Source: summarize-from-feedback's N(0, 1/(H+1)), which keeps scores near 1 for states of unit
    size. Departure: ten times smaller, because states after the final norm are larger, and the
    first steps would go into unlearning random margins (docs/log.md).
    """
    generator = torch.Generator().manual_seed(seed)
    weight_H = torch.randn(hidden_size, generator=generator) * 0.1 * (hidden_size + 1) ** -0.5
    return ScalarHead(weight_H, bias=False)


def new_value_head(hidden_size: int) -> ScalarHead:
    """A value head that starts at 0 everywhere: the first advantages are the plain returns."""
    return ScalarHead(torch.zeros(hidden_size), bias=True)
