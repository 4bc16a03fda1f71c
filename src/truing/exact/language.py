"""A language small enough to write down every sentence, so that expectations are sums.

S contexts, depth first, a parent before its children · V vocabulary · Y sentences, depth first ·
T positions of a sentence

A policy is a table of logits, one row a context: `logits_SV`. Its law over sentences is `logps_Y`,
nats. Everything is float64 and differentiable, so autograd gives exact gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from truing.errors import NumericsError, UsageError
from truing.ops import segment_sum

LARGEST = 6
"""Of vocabulary and length: 3906 contexts, 19531 sentences; a sum over them is still a blink."""

Tokens = tuple[int, ...]


def segment_logsumexp(values_N: Tensor, segment_N: Tensor, segments: int) -> Tensor:
    """log Σ exp of the values of each segment: log Σ_{n: segment_n = c} exp(values_n).

    Shape [segments]; −∞ for a segment without values. Finite values in, any size: the largest of
    each segment is taken out before the exponential. Raises nothing. Source: the usual identity.
    """
    largest = values_N.new_full((segments,), -torch.inf)
    largest = largest.scatter_reduce(0, segment_N, values_N.detach(), "amax")
    scaled_N = (values_N - largest[segment_N]).exp()
    return segment_sum(scaled_N, segment_N, segments).log() + largest


@dataclass(frozen=True)
class Language:
    """All sentences that end with `stop` or have `max_length` tokens.

    Y = Σ_{t<T} (V−1)^t + (V−1)^T, S = Σ_{t<T} (V−1)^t; 2 ≤ vocabulary ≤ 6, 1 ≤ max_length ≤ 6,
    0 ≤ stop < vocabulary. Raises UsageError outside of that. Source: algorithm sheet, 2.0.
    """

    vocabulary: int
    max_length: int
    stop: int = 0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("vocabulary", self.vocabulary, 2, LARGEST),
            ("max_length", self.max_length, 1, LARGEST),
            ("stop", self.stop, 0, self.vocabulary - 1),
        ):
            if not low <= value <= high:
                what = f"{name} is {value}, but every sentence is to be written down"
                raise UsageError(what, where="Language", remedy=f"choose it from {low} to {high}")

    @cached_property
    def _tree(self) -> tuple[tuple[Tokens, ...], tuple[Tokens, ...]]:
        contexts: list[Tokens] = []
        sentences: list[Tokens] = []

        def visit(context: Tokens) -> None:
            contexts.append(context)
            for token in range(self.vocabulary):
                longer = (*context, token)
                ends = token == self.stop or len(longer) == self.max_length
                sentences.append(longer) if ends else visit(longer)

        visit(())
        return tuple(contexts), tuple(sentences)

    @property
    def contexts(self) -> tuple[Tokens, ...]:
        """What may stand before a token; the first is empty."""
        return self._tree[0]

    @property
    def sentences(self) -> tuple[Tokens, ...]:
        """Every sentence, its stop token included where it has one."""
        return self._tree[1]

    @cached_property
    def lengths_Y(self) -> Tensor:
        """Tokens of each sentence, the stop token included."""
        return torch.tensor([len(sentence) for sentence in self.sentences])

    @cached_property
    def mask_YT(self) -> Tensor:
        """True where a sentence has a token."""
        return torch.arange(self.max_length) < self.lengths_Y[:, None]

    @cached_property
    def tokens_YT(self) -> Tensor:
        """The sentences, right padded with 0; only `mask_YT` tells padding from token 0."""
        padding = (0,) * self.max_length
        return torch.tensor([(s + padding)[: self.max_length] for s in self.sentences])

    @cached_property
    def contexts_YT(self) -> Tensor:
        """Index of the context each token stands in, right padded with 0."""
        index = {context: s for s, context in enumerate(self.contexts)}
        rows = [[index.get(y[:t], 0) for t in range(self.max_length)] for y in self.sentences]
        return torch.tensor(rows) * self.mask_YT

    def token_logps(self, logits_SV: Tensor) -> Tensor:
        """log π(y_t | y_<t) of every token of every sentence; 0 at padding.

        Shape [Y, T], nats. Raises UsageError for a table of another shape and NumericsError for one
        that is not finite. Source: algorithm sheet, 0.1.
        """
        size = (len(self.contexts), self.vocabulary)
        if tuple(logits_SV.shape) != size:
            what = f"logits have shape {list(logits_SV.shape)}, this language needs {list(size)}"
            remedy = "one row a context, one column a token"
            raise UsageError(what, where="Language.token_logps", remedy=remedy)
        _refuse_infinite(logits_SV, "Language.token_logps")
        table_SV = logits_SV.double().log_softmax(-1)
        return table_SV[self.contexts_YT, self.tokens_YT] * self.mask_YT

    def sentence_logps(self, logits_SV: Tensor) -> Tensor:
        """ℓ(y) = Σ_t log π(y_t | y_<t). Shape [Y], nats. Raises and source as `token_logps`."""
        return self.token_logps(logits_SV).sum(-1)

    def logits_of(self, logps_Y: Tensor) -> Tensor:
        """The table that realises a law over sentences: ratios of its descendants' mass.

            logit(s, a) = log Σ_{y begins with s a} p(y) − log Σ_{y begins with s} p(y)

        Shape [S, V], each row normalised, finite. `logps_Y`: nats, finite; need not sum to one.
        Raises NumericsError where it is not finite. Source: algorithm sheet, O2.
        """
        _refuse_infinite(logps_Y, "Language.logits_of")
        edges_YT = self.contexts_YT * self.vocabulary + self.tokens_YT
        spread_YT = logps_Y.double()[:, None].expand_as(edges_YT)
        edges = len(self.contexts) * self.vocabulary
        mass = segment_logsumexp(spread_YT[self.mask_YT], edges_YT[self.mask_YT], edges)
        return mass.view(-1, self.vocabulary).log_softmax(-1)


def _refuse_infinite(values: Tensor, where: str) -> None:
    if not values.isfinite().all():
        raise NumericsError(
            "a log-probability or logit is not finite",
            where=where,
            remedy="a table of finite logits gives every sentence some probability: floor it first",
        )
