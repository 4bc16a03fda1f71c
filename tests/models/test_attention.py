"""Our attention against the definition, one query at a time."""

from __future__ import annotations

import pytest
import torch

from truing.models import attention

HEADS, KEY_HEADS, SIZE = 6, 2, 8


def by_definition(query, key, value, visible, scale):
    """softmax over the keys a query sees, in float64, no tricks."""
    mixed = torch.zeros(query.shape[0], query.shape[2], HEADS, SIZE, dtype=torch.float64)
    for row in range(query.shape[0]):
        for head in range(HEADS):
            keys = key[row, head // (HEADS // KEY_HEADS)].double()
            values = value[row, head // (HEADS // KEY_HEADS)].double()
            for t in range(query.shape[2]):
                seen = visible[row, 0, t]
                logits = scale * keys[seen] @ query[row, head, t].double()
                mixed[row, t, head] = torch.softmax(logits, 0) @ values[seen]
    return mixed


def tensors(dtype, keys=9, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = {"query": HEADS, "key": KEY_HEADS, "value": KEY_HEADS}
    made = {n: torch.randn(2, h, keys, SIZE, generator=g).to(dtype) for n, h in shape.items()}
    visible = torch.rand(2, 1, keys, keys, generator=g) < 0.5
    return made, visible | torch.eye(keys, dtype=torch.bool)


@pytest.mark.parametrize("scale", [None, 0.05, 1.7])
def test_it_is_the_definition_at_any_scale(scale):
    made, visible = tensors(torch.float64)
    mixed, _ = attention.attend(torch.nn.Identity(), **made, attention_mask=visible, scaling=scale)
    expected = by_definition(**made, visible=visible, scale=scale or SIZE**-0.5)
    torch.testing.assert_close(mixed, expected, rtol=1e-9, atol=1e-9)


def test_without_a_mask_it_is_causal_and_ends_with_the_newest_key():
    made, _ = tensors(torch.float64)
    made["query"] = made["query"][:, :, -3:]
    mixed, _ = attention.attend(torch.nn.Identity(), **made, attention_mask=None)
    causal = torch.ones(3, 9, dtype=torch.bool).tril(6).expand(2, 1, 3, 9)
    expected = by_definition(**made, visible=causal, scale=SIZE**-0.5)
    torch.testing.assert_close(mixed, expected, rtol=1e-9, atol=1e-9)
