"""Drawing completions: each prompt is computed once for its whole group, then decoded together.

A completion depends on the weights, its prompt and its seed, not on what is drawn beside it
(to rounding). Rows that are finished leave the batch.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from truing.groups import FinishReason, TokenCompletion, TokenGroup
from truing.models.network import Network

COMPACT_BELOW = 0.75
"""Finished rows are dropped once fewer than this share is still being drawn."""


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How completions are drawn; see the recipe's `Sampling` for what each field does."""

    max_completion_length: int
    temperature: float
    batch_size: int
    stop_id: int


@dataclass(slots=True)
class _Row:
    """One completion being drawn."""

    group: int
    noise: Tensor
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finished: bool = False


@torch.no_grad()
def sample(
    network: Network,
    prompts: Sequence[TokenGroup],
    settings: SamplingSettings,
    *,
    completions: int = 1,
    seed: int = 0,
) -> list[TokenGroup]:
    """Groups with `completions` drawn completions each, in the order of `prompts`.

    Each completion carries its sampled log-probs (nats, at the temperature) and why it ended.
    """
    prompts_at_once = max(1, settings.batch_size // completions)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].prompt_ids))
    drawn: dict[int, TokenGroup] = {}
    for start in range(0, len(order), prompts_at_once):
        part = order[start : start + prompts_at_once]
        rows = [
            _Row(group=i, noise=_noise(seed, i, k, settings.max_completion_length))
            for i in part
            for k in range(completions)
        ]
        _draw(network, [prompts[i].prompt_ids for i in part], rows, settings)
        for index, i in enumerate(part):
            mine = rows[index * completions : (index + 1) * completions]
            drawn[i] = _as_group(prompts[i], mine)
    return [drawn[i] for i in range(len(prompts))]


def _noise(seed: int, prompt: int, completion: int, length: int) -> Tensor:
    """One uniform number per token: what makes a completion reproducible by itself."""
    # a tuple of integers hashes the same in every process and on every machine
    generator = torch.Generator().manual_seed(hash((seed, prompt, completion)) & 0x7FFFFFFF)
    return torch.rand(length, generator=generator)


def _as_group(prompt: TokenGroup, rows: list[_Row]) -> TokenGroup:
    completions = tuple(
        TokenCompletion(
            ids=tuple(row.ids),
            finish=FinishReason.STOP if row.finished else FinishReason.LENGTH,
            sampled_logps=tuple(row.logps),
        )
        for row in rows
    )
    return replace(prompt, completions=completions, chosen=None, rejected=None)


def _draw(
    network: Network,
    prompts: list[tuple[int, ...]],
    rows: list[_Row],
    settings: SamplingSettings,
) -> None:
    """Fill `rows`: one prompt pass per group, then token by token."""
    states = _states(network, prompts, len(rows) // len(prompts))
    hidden = next(states)
    active = list(rows)
    for step in range(settings.max_completion_length):
        ids, logps = _choose(network, hidden, active, step, settings.temperature)
        for row, token, logp in zip(active, ids.tolist(), logps.tolist(), strict=True):
            if not row.finished:
                row.ids.append(token)
                row.logps.append(logp)
                row.finished = token == settings.stop_id
        going = [i for i, row in enumerate(active) if not row.finished]
        if not going or step + 1 == settings.max_completion_length:
            return
        keep = None
        if len(going) < COMPACT_BELOW * len(active):
            keep = torch.tensor(going, device=ids.device)
            active = [active[i] for i in going]
            ids = ids[keep]
        hidden = states.send((ids, keep))


def _choose(
    network: Network, hidden: Tensor, rows: list[_Row], step: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """The next token of each row and its log-prob: inverse CDF of the row's own noise."""
    logits = torch.nn.functional.linear(hidden, network.vocabulary_weight).float()
    if temperature == 0:
        ids = logits.argmax(-1)
    else:
        logits = logits / temperature
        cumulative = torch.softmax(logits, -1).cumsum(-1)
        noise = torch.stack([row.noise[step] for row in rows]).to(logits.device)
        # the sum is 1 only to rounding: scale, so that the last token is never overshot
        ids = torch.searchsorted(cumulative, noise[:, None] * cumulative[:, -1:], right=True)
        ids = ids[:, 0].clamp(max=logits.shape[-1] - 1)
    logps = logits.gather(1, ids[:, None])[:, 0] - torch.logsumexp(logits, -1)
    return ids, logps


def _states(
    network: Network, prompts: list[tuple[int, ...]], completions: int
) -> Generator[Tensor, tuple[Tensor, Tensor | None], None]:
    """A coroutine over the model's cache: yields the last hidden state of every row, is sent
    (next ids, rows to keep or None)."""
    device = network.vocabulary_weight.device
    width = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), width, dtype=torch.long, device=device)
    real = torch.zeros(len(prompts), width, dtype=torch.bool, device=device)
    for index, prompt in enumerate(prompts):  # left padded: all prompts end in one column
        tokens[index, width - len(prompt) :] = torch.tensor(prompt, device=device)
        real[index, width - len(prompt) :] = True
    positions = (real.cumsum(-1) - 1).clamp(min=0)
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    itself = torch.eye(width, dtype=torch.bool, device=device)
    cache = DynamicCache(config=network.base.config)
    output = network.trunk(
        input_ids=tokens,
        attention_mask=((causal & real[:, None]) | itself)[:, None],
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    cache.batch_repeat_interleave(completions)
    real = real.repeat_interleave(completions, 0)
    position = positions[:, -1].repeat_interleave(completions, 0)
    hidden = output.last_hidden_state[:, -1].repeat_interleave(completions, 0)
    while True:
        ids, keep = yield hidden
        if keep is not None:
            cache.batch_select_indices(keep)
            real, position = real[keep], position[keep]
        real = torch.cat([real, real.new_ones(real.shape[0], 1)], dim=1)
        position = position + 1
        output = network.trunk(
            input_ids=ids[:, None],
            attention_mask=real[:, None, None],
            position_ids=position[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        hidden = output.last_hidden_state[:, -1]
