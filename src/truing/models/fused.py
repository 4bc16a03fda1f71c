"""The Llama family's norm and gated product in fewer passes over memory, exact to rounding.

On a CPU a decoder layer spends as long on these as on a matrix product: each of transformers'
steps reads and writes all tokens. Here a tile of tokens stays in the processor's cache through all
of them, and the backward pass keeps the input and one number per token instead of five copies.
Two kinds of module are recognised, whatever model they belong to, if one of their class gave the
same numbers before and after; all others are left alone.

T tokens · H width
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

TILE_NUMBERS = 2**17
"""Numbers of one tile on a CPU: half a megabyte of float32. Elsewhere there is one tile."""


def fuse(model: nn.Module) -> None:
    """Give every RMS norm and every SiLU-gated MLP of `model` the forward pass of this module."""
    same: dict[type, bool] = {}
    for module in model.modules():
        ours = _norm if _is_rms_norm(module) else _gated if _is_silu_gated(module) else None
        if ours is None:
            continue
        kind = type(module)
        if kind not in same:
            same[kind] = _same(module, ours)
        if same[kind]:
            module.forward = partial(ours, module)


@torch.no_grad()
def _same(module: Any, ours: Callable[[Any, Tensor], Tensor]) -> bool:
    """Whether the module computes what ours does. Names do not tell: some of the same build clamp
    what they multiply, or scale it. Large inputs make a clamp show."""
    probe = copy.deepcopy(module).float()
    weight = probe.gate_proj.weight if ours is _gated else probe.weight
    x = torch.randn(8, weight.shape[-1], generator=torch.Generator().manual_seed(0))
    x = (x * torch.logspace(-1, 5, 8)[:, None]).to(weight.device)
    expected = probe(x)
    scale = expected.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    return bool(((ours(probe, x) - expected).abs() <= 1e-4 * scale).all())


def _is_rms_norm(module: Any) -> bool:
    """weight · x / rms(x): the field's usual form has this name for its ε. (Gemma's, which
    multiplies by 1 + weight, calls it `eps`.)"""
    named = type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")
    return named and set(dict(module.named_parameters())) == {"weight"}


def _is_silu_gated(module: Any) -> bool:
    """down(silu(gate(x)) · up(x)) and nothing else."""
    parts = {name for name, _ in module.named_children()}
    gated = parts == {"gate_proj", "up_proj", "down_proj", "act_fn"}
    return gated and isinstance(module.act_fn, nn.SiLU | SiLUActivation)


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    apply: Any = _RMSNorm.apply
    normed: Tensor = apply(hidden_states, module.weight, module.variance_epsilon)
    return normed


def _gated(module: Any, x: Tensor) -> Tensor:
    apply: Any = _SiLUGate.apply
    out: Tensor = module.down_proj(apply(module.gate_proj(x), module.up_proj(x)))
    return out


class _RMSNorm(torch.autograd.Function):
    """y = w · x · r with r = (mean x² + ε)^-½, the mean in float32 or better.

    Source: Zhang & Sennrich 2019 (arXiv 1910.07467), equation 4, with transformers' rounding:
    x · r is rounded to the input's precision before it meets w.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
        x_TH = x.reshape(-1, x.shape[-1])
        y_TH = torch.empty_like(x_TH)
        rate_T = x_TH.new_empty(len(x_TH), dtype=torch.promote_types(x.dtype, torch.float32))
        for part in _tiles(x_TH):
            precise = x_TH[part].to(rate_T.dtype)
            mean = torch.linalg.vecdot(precise, precise).div_(x.shape[-1]).add_(epsilon)
            rate_T[part] = mean.rsqrt_()
            normed = (x_TH[part] * rate_T[part, None]).to(x.dtype)
            torch.mul(normed, weight_H, out=y_TH[part])
        ctx.save_for_backward(x, weight_H, rate_T)
        return y_TH.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight_H, rate_T = ctx.saved_tensors
        x_TH, needs_weight = x.reshape(-1, x.shape[-1]), ctx.needs_input_grad[1]
        grad_TH, grad_x_TH = grad.reshape(x_TH.shape), torch.empty_like(x_TH)
        grad_weight_H = torch.zeros_like(weight_H, dtype=rate_T.dtype)
        for part in _tiles(x_TH):
            normed = x_TH[part] * rate_T[part, None]
            if needs_weight:
                grad_weight_H += torch.linalg.vecdot(grad_TH[part].to(rate_T.dtype), normed, dim=0)
            pull = (grad_TH[part] * weight_H).to(rate_T.dtype)
            # moving x along itself moves nothing: that share of the pull is taken out
            along = torch.linalg.vecdot(pull, normed).div_(x_TH.shape[-1])
            pull.addcmul_(normed, along[:, None], value=-1).mul_(rate_T[part, None])
            grad_x_TH[part] = pull
        grad_weight = grad_weight_H.to(weight_H.dtype) if needs_weight else None
        return grad_x_TH.view_as(grad), grad_weight, None


class _SiLUGate(torch.autograd.Function):
    """silu(gate) · up. Keeps gate and up; silu(gate) is computed again in the backward pass.

    Source: Shazeer 2020 (arXiv 2002.05202), equation 6 (SwiGLU).
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate_TH, up_TH = gate.reshape(-1, gate.shape[-1]), up.reshape(-1, up.shape[-1])
        out_TH = torch.empty_like(gate_TH)
        for part in _tiles(gate_TH):
            torch.mul(nn.functional.silu(gate_TH[part]), up_TH[part], out=out_TH[part])
        ctx.save_for_backward(gate, up)
        return out_TH.view_as(gate)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        gate_TH, up_TH, grad_TH = (t.reshape(-1, t.shape[-1]) for t in (gate, up, grad))
        grad_gate_TH, grad_up_TH = torch.empty_like(gate_TH), torch.empty_like(up_TH)
        for part in _tiles(gate_TH):
            torch.mul(grad_TH[part], nn.functional.silu(gate_TH[part]), out=grad_up_TH[part])
            pull = grad_TH[part] * up_TH[part]
            grad_gate_TH[part] = torch.ops.aten.silu_backward(pull, gate_TH[part])
        return grad_gate_TH.view_as(grad), grad_up_TH.view_as(grad)


def _tiles(rows_TH: Tensor) -> Iterator[slice]:
    """Parts of the tokens that fit a CPU's cache."""
    tokens, width = rows_TH.shape
    step = max(1, TILE_NUMBERS // width) if rows_TH.device.type == "cpu" else max(tokens, 1)
    return (slice(start, start + step) for start in range(0, tokens, step))
