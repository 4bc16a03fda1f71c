"""Logits to tokens: the inverse of the cumulative distribution at each row's own random number.

R rows · V vocabulary · W vocabulary in whole chunks · K candidates after truncation
"""

from __future__ import annotations

import torch
from torch import Tensor

from truing.rollouts.engines.base import SamplingSettings

CHUNK = 256
"""Probabilities summed up together before one is looked for among the sums."""


class Chooser:
    """Draws the next token of every row, and says how likely it was.

    The log-prob (nats) is that of the whole distribution at the temperature, whatever `top_k`,
    `top_p` and `min_p` left of it: it equals the trainer's log-prob of the same token, so that
    ratios start at 1. At temperature 0 it is taken at temperature 1.
    """

    def __init__(self, settings: SamplingSettings, weight_VH: Tensor, rows: int) -> None:
        self.settings, self.weight_VH = settings, weight_VH
        self.size = weight_VH.shape[0]
        width = -(-self.size // CHUNK) * CHUNK
        self.product = weight_VH.new_empty(rows, self.size)
        # fresh memory of this size costs more than the sums in it: all passes write in place
        self.logits = torch.empty(rows, width, dtype=torch.float32, device=weight_VH.device)
        self.logits[:, self.size :] = -torch.inf
        self.probs = torch.empty_like(self.logits)

    def __call__(self, hidden_RH: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [R] and log-probs [R], float32. `uniform_R` is in [0, 1)."""
        rows = hidden_RH.shape[0]
        logits_RV = torch.mm(hidden_RH, self.weight_VH.T, out=self.product[:rows])
        return self.from_logits(logits_RV, uniform_R)

    def from_logits(self, logits_RV: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
        """The same from logits."""
        temperature = self.settings.temperature
        rows = logits_RV.shape[0]
        logits = self.logits[:rows]
        logits[:, : self.size] = logits_RV
        if temperature not in (0, 1):
            logits.div_(temperature)
        probs = torch.softmax(logits, -1, out=self.probs[:rows])
        if temperature == 0:
            ids_R = logits.argmax(-1)
        elif self._truncates():
            ids_R = self._draw_truncated(probs, uniform_R)
        else:
            ids_R = _draw(probs, uniform_R)
        return ids_R, probs.gather(1, ids_R[:, None])[:, 0].log()

    def _truncates(self) -> bool:
        settings = self.settings
        return bool(settings.top_k) or settings.top_p < 1 or settings.min_p > 0

    def _draw_truncated(self, probs_RW: Tensor, uniform_R: Tensor) -> Tensor:
        """Draw from what top-k, then top-p of the rest, then min-p leave, likeliest first."""
        settings = self.settings
        if settings.top_k or settings.top_p < 1:
            kept_RK, ids_RK = probs_RW.topk(min(settings.top_k or self.size, self.size))
            cumulative = kept_RK.cumsum(-1)
            # what stands before a token: the first one always stays
            before = cumulative - kept_RK
            kept_RK = kept_RK.masked_fill(before >= settings.top_p * cumulative[:, -1:], 0)
        else:
            kept_RK, ids_RK = probs_RW, None
        least = settings.min_p * kept_RK.amax(-1, keepdim=True)
        kept_RK = kept_RK.masked_fill(kept_RK < least, 0)
        index_R = _inverse(kept_RK.cumsum(-1), uniform_R[:, None])
        return (index_R if ids_RK is None else ids_RK.gather(1, index_R))[:, 0]


def _draw(probs_RW: Tensor, uniform_R: Tensor) -> Tensor:
    """Which token each number falls on: first which chunk, then where in it.

    One pass of sums in place of a cumulative sum over the vocabulary.
    """
    chunks = probs_RW.view(len(probs_RW), -1, CHUNK)
    cumulative = chunks.sum(-1).cumsum(-1)
    target = uniform_R[:, None] * cumulative[:, -1:]
    chunk = _inverse_at(cumulative, target)
    before = torch.where(chunk > 0, cumulative.gather(1, (chunk - 1).clamp(min=0)), 0)
    inside = chunks.gather(1, chunk[:, :, None].expand(-1, -1, CHUNK))[:, 0].cumsum(-1)
    return (chunk * CHUNK + _inverse_at(inside, target - before))[:, 0]


def _inverse(cumulative: Tensor, uniform: Tensor) -> Tensor:
    """First index at which the cumulative sum exceeds its share `uniform` [R, 1] of the total."""
    return _inverse_at(cumulative, uniform * cumulative[:, -1:])


def _inverse_at(cumulative: Tensor, target: Tensor) -> Tensor:
    # rounding may lift the target to the total, beyond the last token that has any probability
    below = torch.nextafter(cumulative[:, -1:], cumulative.new_zeros(()))
    return torch.searchsorted(cumulative, torch.minimum(target, below), right=True)
