"""Our techniques, each with a way to do without it. Nothing in src knows of this.

Every switch leaves what is computed the same (to rounding) and takes away how. `replace` refuses
a name that is not there, so a technique that moved cannot be "switched off" without effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from truing.batch import Batch
from truing.models import allocator, forward, fused, network
from truing.models.logprobs import TokenStatistics
from truing.training import build


def replace(module: Any, name: str, new: Any) -> Any:
    """Put `new` in the place of a name that is there; returns what was. Raises AttributeError."""
    was = getattr(module, name)
    setattr(module, name, new)
    return was


def give_memory_back() -> None:
    """glibc as it comes: large blocks go back to the kernel when they are freed."""
    replace(allocator, "keep_freed_memory", lambda: False)


class DenseMask:
    """One padded row a group, one boolean mask over it, and the library's attention."""

    def __init__(self, batch: Batch) -> None:
        lengths = torch.bincount(batch.group_T)
        width = int(lengths.max())
        starts = torch.cumsum(lengths, 0) - lengths
        column = torch.arange(width, device=lengths.device)[None]
        real = column < lengths[:, None]
        self.place = torch.where(real, starts[:, None] + column, 0)
        self.real = real
        branch = torch.where(real, batch.branch_T[self.place], -1)
        same = branch[:, :, None] == branch[:, None, :]
        seen = (same | (branch[:, None, :] == 0)) & (column[:, :, None] >= column[:, None, :])
        self.mask = seen[:, None]
        self.asked: list[int] = []

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        self.asked.append(layer)
        q, k, v = (tensor[0][:, self.place].transpose(0, 1) for tensor in (query, key, value))
        mixed = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, self.mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        return mixed.transpose(1, 2)[self.real][None]


def dense_mask() -> None:
    """Attention over one row a group under a dense mask, in place of segments."""
    replace(forward, "SharedPrompts", DenseMask)


def unshared_prompts() -> None:
    """Every completion in a padded row of its own, after its own copy of the prompt."""
    replace(network, "hidden_states", forward.unshared_hidden_states)


def head_on_all_tokens() -> None:
    """The vocabulary's logits also where nothing is predicted."""
    seen: list[tuple[Batch, Tensor]] = []

    def hidden_states(trunk: torch.nn.Module, batch: Batch) -> Tensor:
        seen[:] = [(batch, states(trunk, batch))]
        return seen[0][1]

    def token_statistics(
        hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor, *args: Any, **more: Any
    ) -> TokenStatistics:
        batch, hidden = seen.pop()
        silent = torch.ones(batch.size_T, dtype=torch.bool, device=hidden.device)
        silent[batch.source_N] = False
        both = torch.cat([hidden_NH, hidden[silent]])
        targets = torch.cat([target_N, target_N.new_zeros(int(silent.sum()))])
        found = statistics(both, weight_VH, targets, *args, **more)
        kept = slice(0, target_N.numel())
        return TokenStatistics(found.logps_N[kept], found.entropy_N[kept], None)

    states = replace(network, "hidden_states", hidden_states)
    statistics = replace(network, "token_statistics", token_statistics)


def full_logits() -> None:
    """All logits at once, and autograd through them."""

    def token_statistics(
        hidden_NH: Tensor,
        weight_VH: Tensor,
        target_N: Tensor,
        temperature: float = 1.0,
        **more: Any,
    ) -> TokenStatistics:
        logits = torch.nn.functional.linear(hidden_NH, weight_VH).float() / temperature
        logps = torch.log_softmax(logits, dim=-1)
        entropy = -(logps.detach().exp() * logps.detach()).sum(-1)
        return TokenStatistics(logps.gather(1, target_N[:, None])[:, 0], entropy, None)

    replace(network, "token_statistics", token_statistics)


def loop_optimizer() -> None:
    """AdamW tensor by tensor, operator by operator."""

    def make_optimizer(*args: Any) -> torch.optim.AdamW:
        optimizer: torch.optim.AdamW = make(*args)
        for group in optimizer.param_groups:
            group["fused"] = group["foreach"] = False
        return optimizer

    make = replace(build, "make_optimizer", make_optimizer)


def plain_modules() -> None:
    """transformers' own norms and gated products."""
    replace(fused, "fuse", lambda model: None)


OFF: Mapping[str, Callable[[], None]] = {
    "keeping freed memory": give_memory_back,
    "attention in segments": dense_mask,
    "shared prompts": unshared_prompts,
    "the head on completions only": head_on_all_tokens,
    "chunked log-probs": full_logits,
    "fused norms and gates": plain_modules,
    "the fused optimizer": loop_optimizer,
}
"""Technique -> what switches it off, before the model is loaded."""
