"""transformers' `generate`: for models whose attention ours cannot replace (sliding windows,
state-space layers), and to compare with.

The tokens are chosen by our own rule, so the same seed draws the same text as the local engine,
and the log-probs mean the same. Prompts are left padded and every completion has its own copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
)

from truing.groups import TokenCompletion, TokenGroup
from truing.models.network import Network
from truing.rollouts.choosing import Chooser
from truing.rollouts.engines.base import SamplingSettings
from truing.rollouts.rows import Job, Rows, answered


@torch.no_grad()
def draw(
    network: Network,
    prompts: Sequence[TokenGroup],
    settings: SamplingSettings,
    *,
    completions: int,
    seed: int,
) -> list[TokenGroup]:
    """See `Engine`."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].prompt_ids))
    jobs = [Job(index, number) for index in order for number in range(completions)]
    done: list[tuple[Job, TokenCompletion]] = []
    for start in range(0, len(jobs), settings.batch_size):
        part = jobs[start : start + settings.batch_size]
        rows = Rows(settings, seed, network.vocabulary_weight.device)
        rows.add(part)
        _generate(network, [prompts[job.prompt].prompt_ids for job in part], rows)
        done += rows.take_ended()[0]
    return answered(prompts, done, completions)


def _generate(network: Network, prompts: Sequence[tuple[int, ...]], rows: Rows) -> None:
    """Let `generate` run until all rows have ended; they are written down as they come."""
    width = max(map(len, prompts))
    pad = rows.settings.stop_id  # never read: the mask hides it
    ids = torch.tensor([[pad] * (width - len(prompt)) + [*prompt] for prompt in prompts])
    real = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    choose = Chooser(rows.settings, network.vocabulary_weight, len(rows))

    def leave_one(_: Tensor, scores: Tensor) -> Tensor:
        """Only the token of each row that our rule draws stays possible."""
        ids_R, logps_R = choose.from_logits(scores, rows.uniform_R())
        rows.record(ids_R, logps_R)
        return torch.full_like(scores, -torch.inf).scatter_(1, ids_R[:, None], 0.0)

    def ended(*_: object, **__: object) -> Tensor:
        return ~rows.going_R

    with _plain(network.base):
        network.base.generate(
            ids.to(rows.device),
            attention_mask=real.to(rows.device),
            generation_config=GenerationConfig(
                max_new_tokens=rows.settings.max_completion_length,
                do_sample=False,
                pad_token_id=pad,
            ),
            logits_processor=LogitsProcessorList([leave_one]),
            stopping_criteria=StoppingCriteriaList([ended]),
        )


@contextmanager
def _plain(model: Any) -> Iterator[None]:
    """Without the model's own generation defaults, which `generate` takes for all that it is not
    told: a repetition penalty there would change what is drawn, another stop token when."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
