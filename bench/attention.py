"""Attention written out against the fused kernel, forward and backward, at our row shapes.

    python -m bench.attention

Why `models/attention.py` writes attention out on short CPU rows. Prints one line per shape:
medians of each side over alternating runs, and their ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from truing.models import attention

SHAPES = [(32, 64), (16, 144), (8, 300), (4, 512), (2, 1024)]
HEADS, KEY_HEADS, SIZE = 9, 3, 64
REPEATS = 9


def once(
    attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], rows: int, width: int
) -> float:
    """Seconds of one forward and backward in bfloat16."""
    shape = {"q": HEADS, "k": KEY_HEADS, "v": KEY_HEADS}
    q, k, v = (
        torch.randn(rows, heads, width, SIZE, dtype=torch.bfloat16, requires_grad=True)
        for heads in shape.values()
    )
    mask = torch.ones(rows, 1, width, width, dtype=torch.bool).tril()
    started = time.perf_counter()
    attend(q, k, v, mask).sum().backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - started


def written(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return attention.attend(torch.nn.Module(), q, k, v, mask)[0]


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)


def main() -> None:
    """Both sides in turn, medians of `REPEATS`."""
    print(f"{torch.get_num_threads()} threads, bfloat16, {HEADS} heads on {KEY_HEADS}, size {SIZE}")
    for rows, width in SHAPES:
        pairs = [(once(written, rows, width), once(fused, rows, width)) for _ in range(REPEATS)]
        ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(
            f"{rows:3} rows x {width:4} tokens: written out {ours * 1e3:7.1f} ms, "
            f"fused {theirs * 1e3:7.1f} ms, ratio {theirs / ours:.2f}"
        )


if __name__ == "__main__":
    main()
