"""Float32 master weights under whatever precision computes, AdamW, and the schedule."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler


class MasterWeights:
    """The trainable parameters and, where they compute in bfloat16, float32 copies of them.

    bfloat16 has 8 bits: an Adam step of 1e-5 on a weight of 1e-2 would round to nothing. So the
    optimizer moves the float32 master, and the compute copy is rounded from it. Gradients of
    all micro-batches are added up in float32 too.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.computing = dict(parameters)
        self.masters: dict[str, nn.Parameter] = {
            name: p if p.dtype != torch.bfloat16 else nn.Parameter(p.detach().float())
            for name, p in self.computing.items()
        }

    def collect(self) -> None:
        """Add the compute copies' gradients to the masters' and clear them."""
        for name, parameter in self.computing.items():
            master = self.masters[name]
            if master is parameter or parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    def scale_gradients(self, factor: float) -> None:
        for master in self.masters.values():
            if master.grad is not None:
                master.grad.mul_(factor)

    def drop_gradients(self, but: Collection[str]) -> None:
        """Let only these masters learn in this step."""
        for name, master in self.masters.items():
            if name not in but:
                master.grad = None

    def clear_gradients(self) -> None:
        """Forget all of them, those of a backward pass that broke off included."""
        for parameter in (*self.computing.values(), *self.masters.values()):
            parameter.grad = None

    def norm(self) -> Tensor:
        """The L2 norm of all gradients together."""
        found = [master.grad for master in self.masters.values() if master.grad is not None]
        return torch.nn.utils.get_total_norm(found)

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the compute copies."""
        for name, parameter in self.computing.items():
            if self.masters[name] is not parameter:
                parameter.copy_(self.masters[name])

    def gradients(self) -> dict[str, Tensor | None]:
        """Name -> gradient of the master."""
        return {name: master.grad for name, master in self.masters.items()}


def make_optimizer(
    masters: MasterWeights, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW with its usual betas. Biases, norms and heads' vectors are not decayed."""
    matrices = [p for p in masters.masters.values() if p.ndim > 1]
    vectors = [p for p in masters.masters.values() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, fused=True)


def make_schedule(
    optimizer: torch.optim.Optimizer, name: str, total_steps: int, warmup_ratio: float
) -> LRScheduler:
    """Warm-up for a share of the steps (rounded up), then linear, cosine or constant."""
    warmup = int(-(-total_steps * warmup_ratio // 1))
    kind = "constant_with_warmup" if name == "constant" else name
    schedule: LRScheduler = get_scheduler(
        kind, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps
    )
    return schedule
