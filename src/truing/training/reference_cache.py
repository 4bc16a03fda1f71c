"""The reference's log-probs, computed once and kept on disk.

Before training the policy is the reference (with adapters: without them), so its own weights
compute them and no copy is ever loaded. They are computed in the very micro-batches of the first
epoch, by the same forward pass in the same precision: in bfloat16 a log-prob depends in its last
bits on what it is computed beside, and so the first step's log-ratios are exactly 0, as online.
In later epochs groups are shuffled anew, and those last bits differ: on a CPU by at most 2e-5 nats
a token and 6e-5 a completion (SmolLM2-135M, float32 and bfloat16, pairs in another order).

The cache is a file in the cache folder, so that runs with another beta or learning rate share it.
Its name and its header are a hash of everything that the numbers follow from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from truing.batch import Batch
from truing.data.packing import pack
from truing.groups import TokenGroup
from truing.memory import Memory
from truing.models.network import Network
from truing.models.roles import Roles
from truing.storage import cache_folder, write_file, writing

FORWARD_VERSION = 2
"""Raise this when the forward pass rounds otherwise than before: old caches are then not found."""

Parts = Sequence[Sequence[TokenGroup]]
"""Groups in micro-batches, in their order."""


@dataclass(slots=True)
class ReferenceLogps:
    """Log-probs of the reference for every group that training will see."""

    by_group: dict[int, Tensor]
    """Identity of a group -> [N] of its completions, in order, float32, nats."""
    groups: list[TokenGroup]
    """Kept, so that no identity is given away twice."""
    note: str
    """Where they came from, for the user."""

    def of(self, groups: Sequence[TokenGroup]) -> Tensor:
        """Those of a batch packed from these groups. Shape [N], on the CPU."""
        return torch.cat([self.by_group[id(group)] for group in groups])


def reference_logps(
    parts: Parts, roles: Roles, device: torch.device, memory: Memory
) -> ReferenceLogps:
    """From the cache, or computed by the policy as it is now, and then in the cache.

    A file that is not what its name says is computed anew, and the note says so. Where memory ran
    out some were computed in halves, whose last bits are others: those are not cached.
    """
    key = cache_key(parts, roles.policy, roles.temperature)
    path = cache_folder() / "reference-logps" / f"{key[:32]}.safetensors"
    groups = [group for part in parts for group in part]
    lengths = [sum(len(c.ids) for c in group.completions) for group in groups]
    found, problem = _read(path, key, sum(lengths))
    note = f"reference log-probs read from {path}"
    if found is None:
        found = _computed(parts, roles, device, memory)
        note = f"reference log-probs of {len(groups):,} groups computed once"
        if memory.too_large is None:
            _write(path, key, found)
            note += f", kept in {path}"
        if problem:
            note += f" (what was there is not used: {problem})"
    by_group: dict[int, Tensor] = {}
    for group, logps in zip(groups, torch.split(found, lengths), strict=True):
        by_group.setdefault(id(group), logps)  # of a group that comes again the first step's count
    return ReferenceLogps(by_group, groups, note)


def _computed(parts: Parts, roles: Roles, device: torch.device, memory: Memory) -> Tensor:
    found: list[Tensor] = []
    for part in parts:
        batch = pack(part).to(device)
        found += memory.in_parts(lambda half: _starting_logps(roles, half).cpu(), batch)
    return torch.cat(found)


@torch.no_grad()
def _starting_logps(roles: Roles, batch: Batch) -> Tensor:
    """What the policy says of a batch before its first update, adapters off. Shape [N], nats."""
    if roles.policy.peft is not None:
        return roles.reference_logps(batch)
    logps_N: Tensor = roles.policy(batch, logps=True, temperature=roles.temperature).logps_N
    return logps_N


def cache_key(parts: Parts, network: Network, temperature: float) -> str:
    """A hash of all that the log-probs follow from: weights, configuration, precision and device,
    temperature, versions, token ids, and which groups are computed together."""
    found = hashlib.sha256()
    weight = network.vocabulary_weight
    config = network.base.config.to_diff_dict()
    for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
        config.pop(name, None)  # where it lay and who wrote it says nothing of what it computes
    facts = {
        "forward": FORWARD_VERSION,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": _device(weight.device),
        "dtype": str(weight.dtype),
        "temperature": temperature,
        "config": config,
        "parts": [[(g.prompt_ids, [c.ids for c in g.completions]) for g in p] for p in parts],
    }
    found.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, parameter in _reference_weights(network).items():
        found.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        found.update(parameter.detach().contiguous().cpu().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _device(device: torch.device) -> str:
    """What of a device decides how it rounds: which one it is, and on a CPU in how many threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()} x {torch.get_num_threads()}"


def _reference_weights(network: Network) -> dict[str, Tensor]:
    """The plain model's weights by their names there: adapters are not the reference's."""
    return {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in network.base.named_parameters()
        if ".lora_" not in name
    }


def _read(path: Path, key: str, size: int) -> tuple[Tensor | None, str]:
    """The log-probs of a file, or None and what is wrong with it (nothing, if there is none)."""
    if not path.is_file():
        return None, ""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("key") != key:
                return None, "its header is another key's"
            logps: Tensor = file.get_tensor("logps").clone()  # the file is mapped: let go of it
    except (SafetensorError, OSError) as error:
        return None, f"it cannot be read, {error}"
    if logps.shape != (size,) or logps.dtype != torch.float32 or not logps.isfinite().all():
        return None, f"it should hold {size} finite float32 numbers"
    if header.get("sha256") != _digest(logps):
        return None, "its SHA-256 is not the one it was written with"
    return logps, ""


def _write(path: Path, key: str, logps: Tensor) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, save({"logps": logps}, {"key": key, "sha256": _digest(logps)}))


def _digest(logps: Tensor) -> str:
    return hashlib.sha256(logps.contiguous().view(torch.uint8).numpy().data).hexdigest()
