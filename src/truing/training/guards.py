"""What must hold of weights before they are kept: the frozen ones are as they were, all are finite.

Both are read where a checkpoint is written, in the keeper's thread: no step waits for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from truing.errors import NumericsError
from truing.models.roles import REWARD_ADAPTER, Roles

Named = tuple[str, str, Tensor]
"""The network that a tensor is of, its name there, and itself."""


def frozen_tensors(roles: Roles, *, reference_moves: bool) -> Iterator[Named]:
    """Every parameter that no step may change, once, whoever shares it."""
    seen: set[int] = set()
    networks: dict[str, nn.Module | None] = {
        "policy": roles.policy,
        "critic": roles.critic,
        "reference": None if reference_moves else roles.reference_copy,
        "reward model": roles.reward_copy,
    }
    for part, network in networks.items():
        for name, parameter in () if network is None else network.named_parameters():
            if parameter.requires_grad or parameter.data_ptr() in seen:
                continue
            seen.add(parameter.data_ptr())
            of_reward = f".{REWARD_ADAPTER}." in name or name.startswith("reward_head.")
            yield ("reward model" if of_reward else part), name, parameter


@dataclass(slots=True)
class FrozenWeights:
    """The frozen tensors of a stage, and what they were at its start."""

    tensors: list[Named]
    digests: list[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.digests = [_digest(tensor) for _, _, tensor in self.tensors]

    def check(self, where: str) -> None:
        """Raises NumericsError that names the network and the tensor that was written into."""
        for (part, name, tensor), digest in zip(self.tensors, self.digests, strict=True):
            if _digest(tensor) != digest:
                raise NumericsError(
                    f"frozen weights of the {part} have changed since training began: {name}",
                    where=where,
                    remedy="look for what writes into them (a reward or a plug-in in this process; "
                    "if there is none, please report it). Checkpoints before this one were "
                    "whole: --resume goes on from there",
                )


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raises NumericsError that names the first tensor with a number that is none."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise NumericsError(
                f"{name} is not finite",
                where=where,
                remedy="lower learning_rate; it is not saved, and --resume goes on from the "
                "checkpoint before",
            )


def _is_finite(tensor: Tensor) -> bool:
    """A sum is finite only if all its terms are, and costs a tenth of looking at each; that it is
    not can also mean that it is too large."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _digest(tensor: Tensor) -> bytes:
    numbers = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(numbers.view(torch.uint8).numpy().data).digest()
