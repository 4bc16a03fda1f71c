"""What a layout lets each token see, read off its blocks."""

from __future__ import annotations

import torch


def seen_TT(layout, size):
    """True where token q sees token k, [T, T]; each token must be a real query exactly once."""
    seen = torch.zeros(size, size, dtype=torch.bool)
    asked = torch.zeros(size, dtype=torch.long)
    for block in layout.blocks:
        padding = block.padding_BQ
        real = torch.ones_like(block.query_BQ, dtype=torch.bool) if padding is None else ~padding
        asked += torch.bincount(block.query_BQ[real], minlength=size)
        visible = ~block.hidden_BQK & real[:, :, None]
        query = block.query_BQ[:, :, None].expand_as(visible)[visible]
        seen[query, block.key_BK[:, None].expand_as(visible)[visible]] = True
    assert (asked == 1).all()
    return seen
