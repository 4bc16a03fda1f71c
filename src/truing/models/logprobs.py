"""Log-probs of chosen tokens from hidden states, in chunks; full logits are never kept.

N predicted tokens · V vocabulary · H hidden size
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_TOKENS = 512
"""Tokens whose logits exist at once: 512 x 49,152 float32 are 100 MB."""


class TokenStatistics(NamedTuple):
    """What is known of each predicted token from the logits it is drawn by."""

    logps_N: Tensor
    """log π(target), nats, with a gradient."""
    entropy_N: Tensor
    """Entropy of π, nats, without a gradient."""
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
        logps, entropies, normalisers, collisions = [], [], [], []
        for hidden, target in _chunks(hidden_NH, target_N):
            logits = _logits(hidden, weight_VH, temperature)
            normaliser = torch.logsumexp(logits, dim=-1)
            logps.append(logits.gather(1, target[:, None])[:, 0] - normaliser)
            probs = torch.exp(logits - normaliser[:, None])
            entropies.append(normaliser - torch.linalg.vecdot(probs, logits))
            normalisers.append(normaliser)
            if collision:
                collisions.append(torch.logsumexp(2 * (logits - normaliser[:, None]), dim=-1))
        ctx.save_for_backward(hidden_NH, weight_VH, target_N, torch.cat(normalisers))
        ctx.temperature = temperature
        entropy_N = torch.cat(entropies)
        collision_N = torch.cat(collisions) if collision else None
        ctx.mark_non_differentiable(entropy_N, *([] if collision_N is None else [collision_N]))
        return torch.cat(logps), entropy_N, collision_N

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        grad_N: Tensor = gradients[0]
        hidden_NH, weight_VH, target_N, normaliser_N = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_NH) if needs_hidden else None
        grad_weight = (
            torch.zeros_like(weight_VH, dtype=normaliser_N.dtype) if needs_weight else None
        )
        for start in range(0, hidden_NH.shape[0], CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            logits = _logits(hidden_NH[part], weight_VH, ctx.temperature)
            # d logp / d logits = onehot(target) − softmax
            pull = torch.exp(logits - normaliser_N[part, None]).mul_(-grad_N[part, None])
            pull.scatter_add_(1, target_N[part, None], grad_N[part, None])
            pull = (pull / ctx.temperature).to(weight_VH.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = pull @ weight_VH
            if grad_weight is not None:
                grad_weight += (pull.T @ hidden_NH[part]).to(grad_weight.dtype)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight_VH.dtype)
        return grad_hidden, grad_weight, None, None, None


def _chunks(hidden_NH: Tensor, target_N: Tensor) -> Any:
    return zip(
        torch.split(hidden_NH, CHUNK_TOKENS), torch.split(target_N, CHUNK_TOKENS), strict=True
    )


def _logits(hidden: Tensor, weight_VH: Tensor, temperature: float) -> Tensor:
    """Logits at the temperature, in float32 (float64 stays as it is)."""
    logits = torch.nn.functional.linear(hidden, weight_VH)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if temperature == 1.0 else logits / temperature


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


def token_logprobs(
    hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target, and the entropy: `token_statistics` without the rest."""
    return token_statistics(hidden_NH, weight_VH, target_N, temperature)[:2]
