"""The meter of a run: how much work was done and how long drawing took. And the sizes of a model.

It is read where the work is called for (training/build.py, on_policy.py) and costs a run nothing
it would notice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from truing.batch import Batch
from truing.groups import TokenGroup
from truing.models.network import OWN_ADAPTER, Network
from truing.planning import flops
from truing.planning.flops import ModelSizes, Work

KINDS = ("frozen", "train", "forward", "reference", "reward", "sample")
"""Passes that are told apart. `frozen` is the layers below the first adapter, computed once for
all other passes over the same batch, which then begin above them. `forward` is the learning
network without a gradient: the log-probs of a rollout, and what an objective must know of a whole
step."""


@dataclass(slots=True)
class Meter:
    """Counts what is computed, and times what the loop cannot tell apart."""

    work: dict[str, Work] = field(default_factory=dict)
    """Kind -> what was computed; the pairs of batches are in `pairs`."""
    pairs: dict[str, Tensor] = field(default_factory=dict)
    """Kind -> seen pairs, added up on the device: reading them would wait for it."""
    passes: int = 0
    """Micro-batches trained on."""
    drawn: int = 0
    """Tokens of the completions that were drawn."""
    train_seconds: float = 0.0
    """The loop's time without drawing and without what is measured aside."""
    sample_seconds: float = 0.0
    aside_seconds: float = 0.0
    lap_sample_seconds: float = 0.0
    """`sample_seconds` at the last lap."""
    counting: bool = True

    def restart(self) -> None:
        """Forget what was before the first step."""
        self.work, self.pairs = {}, {}
        self.passes = self.drawn = 0
        self.train_seconds = self.sample_seconds = self.aside_seconds = 0.0
        self.lap_sample_seconds = 0.0

    def add(self, kind: str, batch: Batch, *, logits: bool = True) -> None:
        """One pass over a batch; without `logits` only its hidden states are needed."""
        if not self.counting:
            return
        done = Work(batch.size_T, batch.size_N if logits else 0)
        self.work[kind] = self.work.get(kind, Work()) + done
        # a completion's positions go on from its prompt: a token sees what its position says
        seen = (batch.positions_T + 1).sum()
        self.pairs[kind] = self.pairs[kind] + seen if kind in self.pairs else seen
        self.passes += kind == "train"

    def drawing(self, draw: Callable[[], list[TokenGroup]]) -> list[TokenGroup]:
        """What `draw` draws, timed and counted."""
        started = time.perf_counter()
        groups = draw()
        self.sample_seconds += time.perf_counter() - started
        for group in groups:
            lengths = [len(completion.ids) for completion in group.completions]
            done = flops.sampling_work(len(group.prompt_ids), lengths)
            self.work["sample"] = self.work.get("sample", Work()) + done
            self.drawn += sum(lengths)
        return groups

    def aside(self, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What `measure` finds on held-out rows, neither counted nor timed as training."""
        started, self.counting = time.perf_counter(), False
        found = measure()
        self.aside_seconds += time.perf_counter() - started
        self.counting = True
        return found

    def lap(self, loop_seconds: float) -> dict[str, float]:
        """What the time since the last lap went into, as metrics; `loop_seconds` is all so far."""
        train_seconds = loop_seconds - self.sample_seconds - self.aside_seconds
        found = {"timing/train_seconds": train_seconds - self.train_seconds}
        if self.sample_seconds > self.lap_sample_seconds:
            found["timing/sample_seconds"] = self.sample_seconds - self.lap_sample_seconds
        self.train_seconds, self.lap_sample_seconds = train_seconds, self.sample_seconds
        return {name: round(seconds, 6) for name, seconds in found.items()}

    def total(self, kind: str) -> Work:
        """All work of a kind."""
        seen = int(self.pairs[kind]) if kind in self.pairs else 0
        return self.work.get(kind, Work()) + Work(pairs=seen)


def model_sizes(network: Network, trains: str) -> ModelSizes:
    """Sizes of a network, read from its parameters once it is known what learns; of one that
    `trains` a reward without the language-model head."""
    config = network.base.config
    heads: int = config.num_attention_heads
    size: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    found = list(matrices(network.trunk))
    adapted = {id(p) for n, p in found if ".lora_" in n}
    learn = [(n, p) for n, p in found if p.requires_grad]
    lowest = min((layer_of(n) for n, _ in learn), default=config.num_hidden_layers)
    head = None if trains == "reward" else network.vocabulary_weight
    return ModelSizes(
        layers=config.num_hidden_layers,
        width=heads * size,
        trunk_weights=sum(p.numel() for _, p in found if id(p) not in adapted),
        head_weights=0 if head is None else head.numel(),
        adapter_weights=sum(p.numel() for _, p in found if id(p) in adapted),
        trained_weights=sum(p.numel() for _, p in learn),
        reached_layers=config.num_hidden_layers - lowest,
        reached_weights=sum(p.numel() for n, p in found if layer_of(n) >= lowest),
        head_is_trained=head is not None and head.requires_grad,
    )


def matrices(trunk: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The matrices a forward pass of the own network multiplies by, with their names."""
    for name, module in trunk.named_modules():
        if isinstance(module, nn.Embedding):
            continue
        for own, parameter in module.named_parameters(recurse=False):
            others = ".lora_" in name and not name.endswith(f".{OWN_ADAPTER}")
            if parameter.ndim == 2 and not others:
                yield f"{name}.{own}", parameter


def layer_of(name: str) -> int:
    """The decoder layer a matrix is in: the first number in its name, 0 if there is none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)
