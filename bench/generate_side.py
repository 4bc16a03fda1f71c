"""The sampling peer: `generate` of transformers on the same prompts."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from bench.job import Job, Setting
from bench.our_side import CHECKED_TOKENS
from bench.worker import Channel, Clock
from truing.models import allocator


def serve(job: Job, setting: Setting, channel: Channel) -> None:
    """Answer commands until there are none."""
    if setting.keeps_memory:
        allocator.keep_freed_memory()
    transformers.utils.logging.set_verbosity_error()
    dtype = torch.bfloat16 if setting.precision == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        job.folder, dtype=dtype, attn_implementation=setting.attention
    )
    model.eval().to(job.device)
    prompts = [row.ids[0] for row in job.rows]
    channel.loaded(ids=[row.ids for row in job.rows], precision=setting.precision)
    channel.command()  # "warm"
    greedy = _generate(job, setting, model, prompts[:4], CHECKED_TOKENS, do_sample=False)
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    sampling["num_return_sequences"] = job.completions
    torch.manual_seed(job.seed)
    _generate(job, setting, model, prompts, job.max_completion_length, **sampling)
    channel.answer({"greedy": greedy})  # only now: an untimed run must not slow the other's turn
    while channel.command():
        clock = Clock(job.device)
        drawn = _generate(job, setting, model, prompts, job.max_completion_length, **sampling)
        seconds = clock.lap()
        channel.answer(
            {"seconds": seconds, "units": len(drawn), "tokens": sum(len(ids) for ids in drawn)}
        )


@torch.no_grad()
def _generate(
    job: Job, setting: Setting, model: Any, prompts: Any, tokens: int, **how: Any
) -> list[list[int]]:
    """The new ids of each row, up to and with the stop token."""
    ids, real = _left_padded(prompts, job)
    if setting.cache == "static":
        how["cache_implementation"] = "static"
    output = model.generate(
        input_ids=ids,
        attention_mask=real,
        max_new_tokens=tokens,
        eos_token_id=job.stop_id,
        pad_token_id=job.stop_id,
        **how,
    )
    return [_until_stop(row, job.stop_id) for row in output[:, ids.shape[1] :].tolist()]


def _left_padded(prompts: list[tuple[int, ...]], job: Job) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([(job.stop_id,) * (width - len(p)) + p for p in prompts])
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids.to(job.device), real.to(job.device)


def _until_stop(ids: list[int], stop_id: int) -> list[int]:
    return ids[: ids.index(stop_id) + 1] if stop_id in ids else ids
