"""A language of 15 sentences whose expectations are exact sums (algorithm sheet 2.0).

Vocabulary {0, 1, 2}, 0 stops, at most 3 tokens; 7 contexts in depth-first order, one row of
logits each. Golden numbers stand in the sheet, found there by another program.
"""

from __future__ import annotations

import torch
from torch import Tensor

BETA = 0.5


def _sentences() -> list[list[tuple[int, int]]]:
    found: list[list[tuple[int, int]]] = []
    contexts = iter(range(99))

    def grow(path: list[tuple[int, int]]) -> None:
        if path and (path[-1][1] == 0 or len(path) == 3):
            found.append(path)
            return
        context = next(contexts)
        for token in range(3):
            grow([*path, (context, token)])

    grow([])
    return found


SENTENCES = _sentences()
"""Each a list of (context, token)."""
LENGTHS = [len(sentence) for sentence in SENTENCES]
GRID = 3.0 * torch.arange(7, dtype=torch.float64)[:, None] + torch.arange(3)
REFERENCE, POLICY = GRID.sin(), GRID.cos()
REWARDS = (2.0 * torch.arange(15, dtype=torch.float64)).sin()
MU = 1.0 + torch.arange(15, dtype=torch.float64) % 4
MU /= MU.sum()


def token_logps(logits: Tensor) -> list[Tensor]:
    """Per sentence, the log-prob of each of its tokens."""
    table = logits.log_softmax(-1)
    return [torch.stack([table[s, a] for s, a in sentence]) for sentence in SENTENCES]


def sentence_logps(logits: Tensor) -> Tensor:
    """Per sentence, its log-prob."""
    return torch.stack([logps.sum() for logps in token_logps(logits)])


def optimum() -> Tensor:
    """Log-probs of the optimal policy: reference times exp(r/β), normalised."""
    return (sentence_logps(REFERENCE) + REWARDS / BETA).log_softmax(0)


def value_table(logits: Tensor, per_token: list[Tensor]) -> Tensor:
    """Expected sum of `per_token` rewards from each context on, under the policy."""
    probs, logps = sentence_logps(logits).exp(), token_logps(logits)
    values = torch.zeros(7, dtype=torch.float64)
    for context in range(7):
        for sentence, p, steps, rewards in zip(SENTENCES, probs, logps, per_token, strict=True):
            for t, (at, _) in enumerate(sentence):
                if at == context:
                    reach = steps[:t].sum().exp()
                    values[context] += p / reach * rewards[t:].sum()
    return values
