"""Attention in which a prompt is computed once and all its completions see it.

Tokens of all groups lie one after another and nothing is padded. The queries are cut into
segments: a piece of a prompt, or a piece of a completion, whose keys are the prompt's tokens and
then its own. Segments of similar size are computed together as one block. Scores exist for one
block at a time and are computed again in the backward pass, so memory grows with the tokens.

    T tokens · B segments of a block · Q queries and K keys of a segment · d size of a head
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from truing.batch import Batch

SEGMENT_QUERIES = 128
"""Longest segment. Shorter ones compute less above the diagonal, in more calls."""
BLOCK_SCORES = 2**19
"""Query-key pairs of one block at most (times heads: 2^19 are 18 MB at 9 heads in float32)."""
FREE_SCORES = 4096
"""Query-key pairs that cost about as much as one more block: worth padding for."""


class Segment(NamedTuple):
    """Queries `start + first .. start + first + queries`, which see `shared` keys of a prompt and
    then their own run from its beginning up to themselves."""

    prompt: int
    shared: int
    start: int
    first: int
    queries: int

    @property
    def keys(self) -> int:
        return self.shared + self.first + self.queries


class Block(NamedTuple):
    """Segments computed together; padded slots point at token 0 and see, or are seen by, nothing
    that is kept."""

    query_BQ: Tensor
    key_BK: Tensor
    hidden_BQK: Tensor
    """True where a query must not see a key."""
    padding_BQ: Tensor | None
    """True where a query is padding; None where all are real."""


def segments(batch: Batch) -> Iterator[Segment]:
    """Every token of the batch in one segment, as the attention rule cuts them."""
    runs = torch.stack([batch.group_T, batch.branch_T])
    (_, branches), lengths = torch.unique_consecutive(runs, dim=1, return_counts=True)
    start = prompt = shared = 0
    for branch, length in zip(branches.tolist(), lengths.tolist(), strict=True):
        if branch == 0:
            prompt, shared = start, 0
        for first in range(0, length, SEGMENT_QUERIES):
            queries = min(SEGMENT_QUERIES, length - first)
            yield Segment(prompt, shared, start, first, queries)
        if branch == 0:
            shared = length
        start += length


def _together(found: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Segments in blocks: alike enough that padding costs less than another block would."""
    block: list[Segment] = []
    real = longest = 0
    for segment in sorted(found, key=lambda s: (s.keys, s.queries), reverse=True):
        size = segment.queries * segment.keys
        queries = max(longest, segment.queries)
        padded = (len(block) + 1) * queries * (block[0] if block else segment).keys
        wasted = padded - real - size
        if block and (padded > BLOCK_SCORES or wasted > max((real + size) // 4, FREE_SCORES)):
            yield block
            block, real, queries = [], 0, segment.queries
        block.append(segment)
        real, longest = real + size, queries
    yield block


def _block(together: Sequence[Segment], device: torch.device) -> Block:
    numbers = torch.tensor(together, device=device)[:, :, None]
    prompt, shared, start, first, queries = numbers.unbind(1)
    query_BQ = torch.arange(int(queries.max()), device=device)[None]
    key_BK = torch.arange(int((shared + first + queries).max()), device=device)[None]
    real_BQ, own_BK = query_BQ < queries, key_BK - shared
    seen_until_BQ = torch.where(real_BQ, shared + first + query_BQ, 0)
    index_BK = torch.where(own_BK < 0, prompt + key_BK, start + own_BK)
    return Block(
        torch.where(real_BQ, start + first + query_BQ, 0),
        torch.where(key_BK < shared + first + queries, index_BK, 0),
        key_BK[:, None] > seen_until_BQ[:, :, None],
        None if bool(real_BQ.all()) else ~real_BQ,
    )


class SharedPrompts:
    """The layout of one batch, for `attend`: called by every layer of the model."""

    def __init__(self, batch: Batch) -> None:
        device = batch.tokens_T.device
        together = list(_together(list(segments(batch))))
        self.blocks = [_block(part, device) for part in together]
        place, where = 0, torch.empty(batch.size_T, dtype=torch.long)
        for part in together:
            width = max(segment.queries for segment in part)
            for segment in part:
                begin = segment.start + segment.first
                where[begin : begin + segment.queries] = torch.arange(segment.queries) + place
                place += width
        self.place_T = where.to(device)
        """Where token t's query is among the padded queries of all blocks."""
        self.asked: list[int] = []
        """Layers that have asked, in order (see `attention.check_asked`)."""

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        """Attention by the rule of `Batch`. Shapes as in `attend`, with one row of T tokens."""
        self.asked.append(layer)
        flat = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
        apply: Any = _Attention.apply
        mixed: Tensor = apply(*flat, self, scale)
        return mixed[None]


class _Attention(torch.autograd.Function):
    """softmax(q kᵀ · scale) v, block by block: query [T, heads, d], key and value [T, key heads,
    d] -> [T, heads, d]."""

    @staticmethod
    def forward(
        ctx: Any, query_T: Tensor, key_T: Tensor, value_T: Tensor, layout: Any, scale: float
    ) -> Tensor:
        query_T, key_T, value_T = query_T.contiguous(), key_T.contiguous(), value_T.contiguous()
        mixed = []
        for block in layout.blocks:
            query, key, value = _gathered(block, query_T, key_T, value_T)
            weights = _weights(block, query, key, scale)
            mixed.append(_unfolded(weights.to(value.dtype) @ value, block, query_T.shape[1]))
        mixed_T = torch.cat(mixed).index_select(0, layout.place_T).view_as(query_T)
        ctx.save_for_backward(query_T, key_T, value_T, mixed_T)
        ctx.layout, ctx.scale = layout, scale
        return mixed_T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> Any:
        query_T, key_T, value_T, mixed_T = ctx.saved_tensors
        grad_T = grad_T.contiguous()
        # of each query: what all its weights lose together, Σ_k weight_k · (grad · value_k)
        shift_T = torch.linalg.vecdot(*_precise(grad_T, mixed_T))[:, :, None]
        precision = shift_T.dtype
        grad_key_T = torch.zeros(key_T.shape, dtype=precision, device=key_T.device).flatten(1)
        grad_value_T = torch.zeros_like(grad_key_T)
        grad_queries = []
        for block in ctx.layout.blocks:
            query, key, value = _gathered(block, query_T, key_T, value_T)
            weights = _weights(block, query, key, ctx.scale)
            grad = _folded(grad_T, block.query_BQ, key_T.shape[1])
            shift = _folded(shift_T, block.query_BQ, key_T.shape[1])
            if block.padding_BQ is not None:  # a padded query answers for nobody's gradient
                _by_head(weights, block).masked_fill_(block.padding_BQ[:, None, None, :, None], 0)
            grad_value = weights.to(grad.dtype).transpose(2, 3) @ grad
            pull = (grad @ value.transpose(2, 3)).to(precision)
            pull = pull.sub_(shift).mul_(weights).mul_(ctx.scale).to(query.dtype)
            grad_queries.append(_unfolded(pull @ key, block, query_T.shape[1]))
            _add(grad_key_T, block.key_BK, pull.transpose(2, 3) @ query)
            _add(grad_value_T, block.key_BK, grad_value)
        grad_query_T = torch.cat(grad_queries).index_select(0, ctx.layout.place_T)
        grads = (grad_query_T, grad_key_T.to(key_T.dtype), grad_value_T.to(value_T.dtype))
        like = (query_T, key_T, value_T)
        return *(g.view_as(t) for g, t in zip(grads, like, strict=True)), None, None


def _gathered(
    block: Block, query_T: Tensor, key_T: Tensor, value_T: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """query [B, key heads, queries of all their heads, d], key and value [B, key heads, K, d]."""
    heads = key_T.shape[1]
    return (
        _folded(query_T, block.query_BQ, heads),
        _folded(key_T, block.key_BK, heads),
        _folded(value_T, block.key_BK, heads),
    )


def _folded(values_T: Tensor, index_BX: Tensor, key_heads: int) -> Tensor:
    """[T, heads, d] at [B, X] as [B, key heads, heads of each · X, d]: heads that share keys become
    further queries, so keys are never repeated."""
    heads, size = values_T.shape[1:]
    chosen = values_T.flatten(1).index_select(0, index_BX.flatten())
    chosen = chosen.view(*index_BX.shape, key_heads, heads // key_heads, size)
    return chosen.permute(0, 2, 3, 1, 4).reshape(len(index_BX), key_heads, -1, size)


def _unfolded(mixed: Tensor, block: Block, heads: int) -> Tensor:
    """[B, key heads, heads of each · Q, d] as [B · Q, heads · d]."""
    segments_, queries = block.query_BQ.shape
    mixed = mixed.view(segments_, heads, queries, -1)
    return mixed.transpose(1, 2).reshape(segments_ * queries, -1)


def _weights(block: Block, query: Tensor, key: Tensor, scale: float) -> Tensor:
    """The softmax, float32 or better: [B, key heads, heads of each · Q, K]."""
    scores = query @ key.transpose(2, 3)
    lowest = torch.finfo(scores.dtype).min
    _by_head(scores, block).mul_(scale).masked_fill_(block.hidden_BQK[:, None, None], lowest)
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def _by_head(scores: Tensor, block: Block) -> Tensor:
    """The same numbers as [B, key heads, heads of each, Q, K]."""
    return scores.view(*scores.shape[:2], -1, *block.hidden_BQK.shape[1:])


def _add(grad_T: Tensor, key_BK: Tensor, grad: Tensor) -> None:
    """Add [B, key heads, K, d] to the tokens the keys came from (a prompt's come many times)."""
    rows = grad.transpose(1, 2).reshape(key_BK.numel(), -1).to(grad_T.dtype)
    grad_T.scatter_add_(0, key_BK.flatten()[:, None].expand_as(rows), rows)


def _precise(*tensors: Tensor) -> list[Tensor]:
    return [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]
