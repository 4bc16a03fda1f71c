"""Keys and values while completions are drawn, and attention over them.

A prompt is computed once and its keys and values are stored once, in a seat that all its
completions read. What a completion adds lies in its row's own slot, written in place. Nothing is
repeated, shifted or concatenated as text grows:

    bytes = layers · 2 · key heads · d · bytes of a number · (Σ prompts + slots · longest so far)

up to padding: the prompts of one block are padded to its longest, slots grow by doubling.

    R rows (completions being drawn) · P seats of a block · S rows that share a seat
    K keys · Q queries · d size of a head
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from truing.data.packing import pack
from truing.groups import TokenGroup
from truing.models.attention import check_asked, no_mask
from truing.models.network import Network
from truing.models.shared_prompts import SharedPrompts

FIRST_SLOT = 32
"""Tokens a slot has room for at first; doubled when it is full."""
COMPACT_BELOW = 0.75
"""Seats nobody needs are taken out of a block once fewer than this share are needed."""


class PromptBlock:
    """Prompts of similar length, computed together: a layout that keeps their keys and values."""

    def __init__(self, network: Network, prompts: Sequence[int], ids: Sequence[Sequence[int]]):
        self.prompts = list(prompts)
        batch = pack([TokenGroup(tuple(one)) for one in ids]).to(network.vocabulary_weight.device)
        self._attention = SharedPrompts(batch)
        self._seat_T, self._position_T = batch.group_T, batch.positions_T
        self.length_P = torch.bincount(batch.group_T)
        self.stored: dict[int, Tensor] = {}
        """Of each layer: keys and values, [2, P, key heads, K, d]."""
        output = network.trunk(
            input_ids=batch.tokens_T[None],
            attention_mask=no_mask(batch.tokens_T.device),
            position_ids=batch.positions_T[None],
            use_cache=False,
            layout=self,
        )
        check_asked(network.trunk, self._attention.asked)
        self.last_PH: Tensor = output.last_hidden_state[0, self.length_P.cumsum(0) - 1]
        """The state that predicts the first token of every completion."""
        self.bias_PK = _bias(self.length_P, int(self.length_P.max()))

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        seats, longest = len(self.prompts), int(self.length_P.max())
        stored = key.new_zeros(2, seats, key.shape[1], longest, key.shape[3])
        for place, tensor in zip(stored, (key, value), strict=True):
            place[self._seat_T, :, self._position_T] = tensor[0].transpose(0, 1)
        self.stored[layer] = stored
        return self._attention(layer, query, key, value, scale)

    def keep(self, needed: Sequence[int]) -> None:
        """Only these prompts' seats."""
        seats = torch.tensor([self.prompts.index(p) for p in needed], device=self.length_P.device)
        self.prompts = list(needed)
        self.length_P, self.last_PH = self.length_P[seats], self.last_PH[seats]
        longest = int(self.length_P.max())
        self.stored = {n: kept[:, seats, :, :longest] for n, kept in self.stored.items()}
        self.bias_PK = _bias(self.length_P, longest)


class Slots:
    """The layout of one decoding step: every row adds a token and sees its prompt and itself."""

    def __init__(self, network: Network, slots: int, longest: int) -> None:
        self.network, self.slots, self.longest = network, slots, longest
        self.blocks: list[PromptBlock] = []
        self.own: dict[int, Tensor] = {}
        """Of each layer: keys and values, [2, slots, key heads, room, d]. Rows come first."""
        self._room = min(FIRST_SLOT, longest)

    def arrange(self, prompts: Sequence[int], waiting: Sequence[int]) -> None:
        """Whose prompt each row continues, in the order of rows, and which prompts jobs still wait
        for. Seats of other prompts are given up."""
        self._give_up({*prompts, *waiting})
        self.grids: list[Tensor] = []
        device = self.network.vocabulary_weight.device
        place_R, length_R, begin = [0] * len(prompts), [0] * len(prompts), 0
        for block in self.blocks:
            seat_of = {prompt: seat for seat, prompt in enumerate(block.prompts)}
            rows: list[list[int]] = [[] for _ in block.prompts]
            for row, prompt in enumerate(prompts):
                if prompt in seat_of:
                    rows[seat_of[prompt]].append(row)
            width = max(map(len, rows))
            lengths = block.length_P.tolist()
            for seat, members in enumerate(rows):
                for index, row in enumerate(members):
                    place_R[row], length_R[row] = begin + seat * width + index, lengths[seat]
            begin += width * len(rows)
            padded = [members + [0] * (width - len(members)) for members in rows]
            self.grids.append(torch.tensor(padded, dtype=torch.long, device=device))
        self._place_R = torch.tensor(place_R, dtype=torch.long, device=device)
        self._prompt_length_R = torch.tensor(length_R, dtype=torch.long, device=device)
        self._row_R = torch.arange(len(prompts), device=device)

    def _give_up(self, needed: set[int]) -> None:
        for block in list(self.blocks):
            kept = [prompt for prompt in block.prompts if prompt in needed]
            if not kept:
                self.blocks.remove(block)
            elif len(kept) < COMPACT_BELOW * len(block.prompts):
                block.keep(kept)

    def keep(self, rows_R: Tensor) -> None:
        """Only these rows, now the first ones."""
        for own in self.own.values():
            own[:, : len(rows_R)] = own[:, rows_R]

    def decode(self, ids_R: Tensor, length_R: Tensor) -> Tensor:
        """Final hidden state [R, H] of each row's newest token, of `length_R` so far."""
        self._column_R = length_R - 1
        self._width = int(length_R.max())
        self._bias_RK = _bias(length_R, self._width)
        while self._width > self._room:
            self._grow()
        position_R = self._prompt_length_R + self._column_R
        output = self.network.trunk(
            input_ids=ids_R[:, None],
            attention_mask=no_mask(ids_R.device),
            position_ids=position_R[:, None],
            use_cache=False,
            layout=self,
        )
        hidden_RH: Tensor = output.last_hidden_state[:, 0]
        return hidden_RH

    def _grow(self) -> None:
        self._room = min(2 * self._room, self.longest)
        for layer, old in self.own.items():
            self.own[layer] = self._empty(old[0])
            self.own[layer][..., : old.shape[3], :] = old

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_zeros(2, self.slots, like.shape[1], self._room, like.shape[3])

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        rows, heads, _, size = query.shape
        if layer not in self.own:
            self.own[layer] = self._empty(key)
        own = self.own[layer]
        own[0, self._row_R, :, self._column_R] = key[:, :, 0]
        own[1, self._row_R, :, self._column_R] = value[:, :, 0]
        keys, values = own[:, :rows, :, : self._width]
        # heads that share keys are further queries of those keys: keys are never repeated
        folded = (query * scale).reshape(rows, key.shape[1], -1, size)
        mean, total = _part(folded, keys, values, self._bias_RK)
        parts = [
            self._of_prompts(folded, block.stored[layer], block.bias_PK, grid)
            for block, grid in zip(self.blocks, self.grids, strict=True)
            if grid.numel()
        ]
        means, totals = (torch.cat(part)[self._place_R] for part in zip(*parts, strict=True))
        share = torch.sigmoid(total - totals)
        mixed = torch.lerp(means.to(share.dtype), mean.to(share.dtype), share)
        return mixed.to(query.dtype).view(rows, 1, heads, size)

    def _of_prompts(
        self, query: Tensor, stored: Tensor, bias_PK: Tensor | None, grid_PS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attention of the rows of a block to its prompts, for every place of the grid."""
        seats, shared = grid_PS.shape
        _, key_heads, queries, size = query.shape
        grid = query[grid_PS.flatten()].view(seats, shared, key_heads, queries * size)
        grid = grid.transpose(1, 2).reshape(seats, key_heads, shared * queries, size)
        mean, total = _part(grid, stored[0], stored[1], bias_PK)
        by_row = (seats, key_heads, shared, queries, -1)
        mean, total = (x.view(by_row).transpose(1, 2).flatten(0, 1) for x in (mean, total))
        return mean, total


def _part(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention to a part of the keys: its mean [.., Q, d], and log Σ exp of its scores [.., Q, 1].

    Two parts' means, weighted by their sums, are the mean over both: one softmax in two pieces.
    Scores and sums are float32 or better.
    """
    scores = query @ key.transpose(2, 3)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if bias is not None:
        scores = scores.add_(bias)
    weights = torch.softmax(scores, -1)
    # of any key: log weight = score - log sum; the likeliest key's weight is never rounded to 0
    total = scores.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log_()
    return weights.to(value.dtype) @ value, total


def _bias(length: Tensor, longest: int) -> Tensor | None:
    """What is added to the scores of keys, [.., 1, 1, longest]: -inf behind each one's length."""
    column = torch.arange(longest, device=length.device)
    beyond = column >= length[:, None]
    if not bool(beyond.any()):
        return None
    bias = torch.zeros(beyond.shape, device=length.device).masked_fill_(beyond, -torch.inf)
    return bias[:, None, None]
