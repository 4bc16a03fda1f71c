"""Log-probs of chosen tokens from hidden states, in chunks; full logits are never kept.

Both passes go over the vocabulary in tiles: the logits of one tile stay in the processor's cache
while they are reduced, and each tile of the head's gradient is one product, written once.

N predicted tokens · V vocabulary · H hidden size
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

TILE_LOGITS = {"cpu": 2**19}
"""Logits that exist at once, by kind of device: 2^19 are 2 MB of float32."""
TILE_LOGITS_ELSEWHERE = 2**26


class TokenStatistics(NamedTuple):
    """What is known of each predicted token from the logits it is drawn by."""

    logps_N: Tensor
    """log π(target), nats, with a gradient."""
    entropy_N: Tensor
    """Entropy of π, nats, with a gradient."""
    collision_N: Tensor | None
    """log Σ_v π(v)², without a gradient; None unless asked for."""


class _ChunkedLogProbs(torch.autograd.Function):
    """log softmax(h Wᵀ / T)[target] per token; the backward computes each chunk's logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        target_N: Tensor,
        temperature: float,
        collision: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        sums = _Sums(hidden_NH, collision)
        for part in _tiles(hidden_NH, weight_VH):
            logits = _logits(hidden_NH, weight_VH[part], temperature)
            sums.add(logits, *_here(target_N, part))
        normaliser_N = sums.highest_N + sums.total_N.log()
        entropy_N = normaliser_N - sums.highest_N - sums.weighted_N / sums.total_N
        collision_N = sums.collision_N
        ctx.save_for_backward(hidden_NH, weight_VH, target_N, normaliser_N, entropy_N)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)  # None, not zeros, for what no loss reads
        if collision_N is not None:
            ctx.mark_non_differentiable(collision_N)
        return sums.target_N - normaliser_N, entropy_N, collision_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, target_N, normaliser_N, entropy_N = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        by_logp, by_entropy = (None if g is None else g / ctx.temperature for g in gradients[:2])
        grad_N = torch.zeros_like(normaliser_N) if by_logp is None else by_logp
        grad_hidden = torch.zeros_like(hidden_NH, dtype=normaliser_N.dtype)
        grad_weight = torch.empty_like(weight_VH) if needs_weight else None
        for part in _tiles(hidden_NH, weight_VH):
            logits = _logits(hidden_NH, weight_VH[part], ctx.temperature)
            # d logp / d logits = onehot(target) − softmax, d entropy / d logits = −π (log π + H)
            logps = logits.sub_(normaliser_N[:, None])
            factor = -grad_N[:, None]
            if by_entropy is not None:
                factor = factor - by_entropy[:, None] * (logps + entropy_N[:, None])
            pull = logps.exp_().mul_(factor)
            here, column = _here(target_N, part)
            pull[here, column] += grad_N[here]
            pull = pull.to(weight_VH.dtype)
            if needs_hidden:
                grad_hidden += pull @ weight_VH[part]
            if grad_weight is not None:
                torch.mm(pull.T, hidden_NH, out=grad_weight[part])
        return grad_hidden.to(hidden_NH.dtype), grad_weight, None, None, None


class _Sums:
    """Running sums over tiles of logits, each relative to the highest logit so far."""

    def __init__(self, hidden_NH: Tensor, collision: bool) -> None:
        precision = torch.promote_types(hidden_NH.dtype, torch.float32)
        blank_N = hidden_NH.new_zeros(hidden_NH.shape[0], dtype=precision)
        self.highest_N = blank_N - torch.inf
        self.total_N = blank_N.clone()
        """Σ exp(logit − highest)"""
        self.weighted_N = blank_N.clone()
        """Σ exp(logit − highest) · (logit − highest)"""
        self.squared_N = blank_N.clone() if collision else None
        """Σ exp(2 · (logit − highest))"""
        self.target_N = blank_N.clone()
        """The target's own logit."""

    def add(self, logits: Tensor, here: Tensor, column: Tensor) -> None:
        """One more tile; it is overwritten. `here` are the tokens whose target is in `column`."""
        self.target_N[here] = logits[here, column]
        highest_N = torch.maximum(self.highest_N, logits.amax(-1))
        fall_N = self.highest_N - highest_N  # −∞ before the first tile, where all sums are 0
        kept_N = fall_N.exp()
        logits.sub_(highest_N[:, None])
        weights = logits.exp()
        moved_N = torch.where(kept_N > 0, fall_N, 0) * self.total_N
        self.weighted_N.add_(moved_N).mul_(kept_N).add_(torch.linalg.vecdot(weights, logits))
        self.total_N.mul_(kept_N).add_(weights.sum(-1))
        if self.squared_N is not None:
            self.squared_N.mul_(kept_N**2).add_(torch.linalg.vecdot(weights, weights))
        self.highest_N = highest_N

    @property
    def collision_N(self) -> Tensor | None:
        return None if self.squared_N is None else self.squared_N.log() - 2 * self.total_N.log()


def _tiles(hidden_NH: Tensor, weight_VH: Tensor) -> Iterator[slice]:
    """Parts of the vocabulary whose logits for all tokens fit in one tile."""
    size = weight_VH.shape[0]
    logits = TILE_LOGITS.get(hidden_NH.device.type, TILE_LOGITS_ELSEWHERE)
    step = max(1, logits // hidden_NH.shape[0])
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _here(target_N: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Tokens whose target is in this part of the vocabulary, and its column there."""
    here = torch.nonzero((target_N >= part.start) & (target_N < part.stop))[:, 0]
    return here, target_N[here] - part.start


def _logits(hidden: Tensor, weight_VH: Tensor, temperature: float) -> Tensor:
    """Logits at the temperature, in float32 (float64 stays as it is), in memory of their own."""
    logits = torch.nn.functional.linear(hidden, weight_VH)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def token_statistics(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    target_N: Tensor,
    temperature: float = 1.0,
    *,
    collision: bool = False,
) -> TokenStatistics:
    """Log-prob of each target, and the entropy (and collision) of π(· | state), at `temperature`.

    Shapes: hidden_NH [N, H], weight_VH [V, H], target_N [N] -> [N] each, float32, from one pass
    over the logits. `temperature` > 0.
    """
    if hidden_NH.shape[0] == 0:
        empty = hidden_NH.new_zeros(0, dtype=torch.float32)
        return TokenStatistics(empty, empty, empty if collision else None)
    apply: Any = _ChunkedLogProbs.apply
    return TokenStatistics(*apply(hidden_NH, weight_VH, target_N, temperature, collision))
