"""TRL's side of a comparison: its own trainers through `trainer.train()`, one command at a time.

Steps are timed between the trainer's own callbacks; fetching the next batch and writing the log
lie outside and cost TRL nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from bench.job import MAX_LENGTH, RUNS, Job, Setting
from bench.worker import Channel, Clock
from truing.models import allocator
from truing.models.heads import new_score_head
from truing.models.saving import padding_id


def serve(job: Job, setting: Setting, channel: Channel, rollout: list[list[int]]) -> None:
    """Answer commands from inside the trainer's loop until there are none.

    `rollout` are completions that the first GRPO step learns from in place of its own, so that
    both sides can be compared on the same ones.
    """
    if setting.keeps_memory:
        allocator.keep_freed_memory()
    transformers.utils.logging.set_verbosity_error()
    trainer = MAKERS[job.work](job, setting)
    trainer.remove_callback(transformers.PrinterCallback)
    turns = Turns(job, channel)
    trainer.add_callback(turns)
    if job.work == "grpo":
        turns.after_first = _replay(trainer, rollout)
    channel.loaded(ids=tokenised(job, trainer), precision=setting.precision)
    trainer.train()


class Turns(transformers.TrainerCallback):  # type: ignore[misc]
    """Waits before a step until the next command, and answers when its steps are done."""

    def __init__(self, job: Job, channel: Channel) -> None:
        self.job, self.channel = job, channel
        self.clock: Clock | None = None
        self.seconds: list[float] = []
        self.logs: dict[str, float] = {}
        self.tokens = 0.0
        self.left = 0
        self.warmed = False
        self.after_first: Callable[[], None] = lambda: None

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self.left == 0:
            if self.seconds:
                self._answer()
            self.channel.command()
            self.left = self.job.steps if self.warmed else 1
        self.clock = Clock(self.job.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        assert self.clock is not None
        self.seconds.append(self.clock.lap())
        self.left -= 1

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        if "loss" in logs:
            self.logs = {k: v for k, v in logs.items() if isinstance(v, int | float)}
            self.tokens += logs.get("completions/mean_length", 0.0) * self._completions

    @property
    def _completions(self) -> int:
        return self.job.batch * self.job.completions

    def _answer(self) -> None:
        steps = len(self.seconds)
        drawn = self.job.work == "grpo"
        tokens = sum(row.length(self.job.work) for row in self.job.rows[: steps * self.job.batch])
        self.channel.answer(
            {
                "metrics": self.logs,
                "seconds": sum(self.seconds),
                "units": steps * (self._completions if drawn else self.job.batch),
                "tokens": round(self.tokens) if drawn else tokens,
            }
        )
        if not self.warmed:
            self.after_first()
        self.warmed, self.seconds, self.tokens = True, [], 0.0


def tokenised(job: Job, trainer: Any) -> list[Any]:
    """The ids TRL made of the rows, in the form of `Row.ids` as far as the work has them."""
    rows = list(trainer.train_dataset)[job.batch : job.batch + len(job.rows)]
    if job.work == "dpo":
        return [[row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]] for row in rows]
    if job.work == "reward":
        return [[row["chosen_ids"], row["rejected_ids"]] for row in rows]
    if job.work == "sft":
        return [_divided(row["input_ids"], row["labels"]) for row in rows]
    return [[list(trainer.processing_class(row["prompt"])["input_ids"])] for row in rows]


def _divided(ids: Sequence[int], labels: Sequence[int]) -> list[list[int]]:
    """Prompt and answer: what carries no loss, and what does."""
    prompt = sum(label == -100 for label in labels)
    return [list(ids[:prompt]), list(labels[prompt:])]


def _arguments(job: Job, setting: Setting) -> dict[str, Any]:
    """What all trainers are told: our optimizer settings, our order, and no extra work."""
    cuda = torch.device(job.device).type == "cuda"
    return {
        "output_dir": tempfile.mkdtemp(prefix="bench-trl-"),
        "per_device_train_batch_size": job.batch * (job.completions if job.work == "grpo" else 1),
        "gradient_accumulation_steps": 1,
        "max_steps": 2 + RUNS * job.steps,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "bf16": setting.precision == "autocast",
        "use_cpu": not cuda,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": cuda,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": job.seed,
    }


def _dtype(setting: Setting) -> torch.dtype:
    return torch.bfloat16 if setting.precision == "bfloat16" else torch.float32


def _dataset(job: Job, row: Callable[[tuple[str, str, str]], dict[str, str]]) -> Dataset:
    """The first batch for the warm-up, then all rows again and again, then one batch to stop at."""
    repeated = [*job.rows[: job.batch], *(list(job.rows) * RUNS), *job.rows[: job.batch]]
    return Dataset.from_list([row(r.texts) for r in repeated])


def _model(job: Job, setting: Setting) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        job.folder, dtype=_dtype(setting), attn_implementation=setting.attention
    )


def _dpo(job: Job, setting: Setting) -> Any:
    cached = setting.reference == "cached"
    arguments = trl.DPOConfig(
        **_arguments(job, setting), max_length=MAX_LENGTH, precompute_ref_log_probs=cached
    )
    return trl.DPOTrainer(
        model=_model(job, setting),
        args=arguments,
        train_dataset=_dataset(job, _pair),
        processing_class=AutoTokenizer.from_pretrained(job.folder),
    )


def _pair(texts: tuple[str, str, str]) -> dict[str, str]:
    return dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))


def _reward(job: Job, setting: Setting) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(job.folder)
    tokenizer.pad_token_id = padding_id(tokenizer, job.stop_id)  # it pools by looking for padding
    model = AutoModelForSequenceClassification.from_pretrained(
        job.folder,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        dtype=_dtype(setting),
        attn_implementation=setting.attention,
    )
    with torch.no_grad():  # both sides start from the same head
        model.score.weight.copy_(new_score_head(model.config.hidden_size, job.seed).weight)
    return trl.RewardTrainer(
        model=model,
        args=trl.RewardConfig(**_arguments(job, setting), max_length=MAX_LENGTH),
        train_dataset=_dataset(job, _pair),
        processing_class=tokenizer,
    )


def _sft(job: Job, setting: Setting) -> Any:
    return trl.SFTTrainer(
        model=_model(job, setting),
        args=trl.SFTConfig(**_arguments(job, setting), max_length=MAX_LENGTH),
        train_dataset=_dataset(job, lambda t: {"prompt": t[0], "completion": t[1]}),
        processing_class=AutoTokenizer.from_pretrained(job.folder),
    )


def _grpo(job: Job, setting: Setting) -> Any:
    def even_ids(completion_ids: list[list[int]], **more: Any) -> list[float]:
        return [float(sum(token % 2 == 0 for token in ids)) for ids in completion_ids]

    arguments = trl.GRPOConfig(
        **_arguments(job, setting),
        num_generations=job.completions,
        max_completion_length=job.max_completion_length,
        steps_per_generation=1,
        num_iterations=1,
        beta=0.0,
        loss_type="grpo",
        shuffle_dataset=False,
        cache_implementation="static" if setting.cache == "static" else None,
    )
    return trl.GRPOTrainer(
        model=_model(job, setting),
        reward_funcs=even_ids,
        args=arguments,
        train_dataset=_dataset(job, lambda t: {"prompt": t[0]}),
        processing_class=AutoTokenizer.from_pretrained(job.folder, padding_side="left"),
    )


def _replay(trainer: Any, rollout: list[list[int]]) -> Callable[[], None]:
    """Let the first step learn from given completions; returns what ends that."""
    own = trainer._generate_single_turn
    trainer._generate_single_turn = lambda *args, **kwargs: (rollout, None)

    def end() -> None:
        trainer._generate_single_turn = own

    return end


MAKERS: dict[str, Callable[[Job, Setting], Any]] = {
    "dpo": _dpo,
    "reward": _reward,
    "sft": _sft,
    "grpo": _grpo,
}
