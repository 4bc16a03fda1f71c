"""How many floating-point operations a piece of work takes at the least. No torch.

A multiplication and its addition are two operations. Only matrix products are counted: a product
of a matrix with N weights takes 2·N a token forward, 2·N for the gradient of its input and 2·N for
that of its weights; attention 4·d a head for each query-key pair a query sees, twice that backward.
This is the floor that no method gets below, so what an engine does besides does not count: padding,
a prompt computed more than once, logits or activations computed again in the backward pass.
Norms, activations, softmax, heads of one output and the optimizer are left out: they take few
operations. (They do take time.)

Source: Kaplan et al. 2020 (arXiv 2001.08361), section 2.1, with attention counted by seen pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """What the operations of a decoder depend on. Weights are those of matrices, in numbers."""

    layers: int
    width: int
    """Attention heads times the size of one."""
    trunk_weights: int
    """Of all layers, without adapters, embeddings and language-model head."""
    head_weights: int
    """Vocabulary times hidden size."""
    adapter_weights: int = 0
    trained_weights: int = 0
    """Of the trunk and its adapters, those that get a gradient."""
    reached_layers: int = 0
    """Layers that the gradient reaches: from the last down to the lowest one that is trained."""
    reached_weights: int = 0
    """Of those layers, adapters included: their inputs get a gradient. (That the lowest layer's
    own input needs none is not counted off: less than 1 / (2·layers) of a full backward pass.)"""
    head_is_trained: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """What is computed: counts over any number of groups."""

    tokens: int = 0
    """Tokens that pass through the layers, each prompt once."""
    predicted: int = 0
    """Tokens whose logits are needed."""
    pairs: int = 0
    """Query-key pairs with the key in sight of the query."""

    def __add__(self, other: Work) -> Work:
        return Work(
            self.tokens + other.tokens, self.predicted + other.predicted, self.pairs + other.pairs
        )


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations by what does them."""

    linear: int = 0
    attention: int = 0
    head: int = 0
    """The language-model head."""

    @property
    def total(self) -> int:
        return self.linear + self.attention + self.head

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            self.linear + other.linear, self.attention + other.attention, self.head + other.head
        )

    def __sub__(self, other: Flops) -> Flops:
        return Flops(
            self.linear - other.linear, self.attention - other.attention, self.head - other.head
        )


def _triangle(length: int) -> int:
    """Pairs of a causal run of `length` tokens: each sees itself and what is before it."""
    return length * (length + 1) // 2


def group_work(prompt: int, completions: Sequence[int]) -> Work:
    """A prompt of so many tokens, computed once, and its completions."""
    own = sum(completions)
    pairs = _triangle(prompt) + sum(_triangle(c) + c * prompt for c in completions)
    return Work(prompt + own, own, pairs)


def sampling_work(prompt: int, completions: Sequence[int]) -> Work:
    """Drawing them, the prompt read once: the last token of each is drawn and not read."""
    read = group_work(prompt, [max(0, c - 1) for c in completions])
    return Work(read.tokens, sum(completions), read.pairs)


def forward(sizes: ModelSizes, work: Work) -> Flops:
    """One pass over the model with its adapters."""
    return Flops(
        linear=2 * (sizes.trunk_weights + sizes.adapter_weights) * work.tokens,
        attention=4 * sizes.layers * sizes.width * work.pairs,
        head=2 * sizes.head_weights * work.predicted,
    )


def lower(sizes: ModelSizes, work: Work) -> Flops:
    """A pass over the layers that no gradient reaches: the same whoever reads them, so one pass
    over a batch serves the policy, its reference and every epoch. 0 where all layers learn."""
    layers = sizes.layers - sizes.reached_layers
    own = sizes.reached_weights - sizes.adapter_weights
    return Flops(
        linear=2 * (sizes.trunk_weights - own) * work.tokens,
        attention=4 * layers * sizes.width * work.pairs,
    )


def upper(sizes: ModelSizes, work: Work) -> Flops:
    """One pass over the layers that learn, and the head."""
    return forward(sizes, work) - lower(sizes, work)


def backward(sizes: ModelSizes, work: Work) -> Flops:
    """The gradient of what was trained: none of frozen matrices, none below the lowest adapter."""
    head = 2 if sizes.head_is_trained else 1
    return Flops(
        linear=2 * (sizes.reached_weights + sizes.trained_weights) * work.tokens,
        attention=8 * sizes.reached_layers * sizes.width * work.pairs,
        head=2 * head * sizes.head_weights * work.predicted,
    )


def training(sizes: ModelSizes, work: Work) -> Flops:
    """Forward and backward: a step without its optimizer."""
    return forward(sizes, work) + backward(sizes, work)


def reference(sizes: ModelSizes, work: Work) -> Flops:
    """The frozen reference's pass. With adapters it differs from the policy's only from the lowest
    adapted layer on: what is below need not be computed twice."""
    if not sizes.adapter_weights:
        return forward(sizes, work)
    own = sizes.reached_weights - sizes.adapter_weights
    return Flops(
        linear=2 * own * work.tokens,
        attention=4 * sizes.reached_layers * sizes.width * work.pairs,
        head=2 * sizes.head_weights * work.predicted,
    )
