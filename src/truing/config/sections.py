"""The parts that every recipe has: model, data, sampling, and what a stage says. No torch."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _written(reward: Any) -> Any:
    """A reward as a file can hold it: a function by its name and a hash of what it says."""
    if isinstance(reward, Mapping):
        return {key: _written(value) for key, value in reward.items()}
    if not callable(reward):
        return reward
    try:
        source = inspect.getsource(reward)
    except (OSError, TypeError):  # typed in at a prompt, built in, or an object
        source = repr(reward)
    name = getattr(reward, "__qualname__", type(reward).__qualname__)
    return f"{reward.__module__}:{name}#{hashlib.sha256(source.encode()).hexdigest()[:12]}"


RewardSpec = Annotated[str | dict[str, Any] | Callable[..., Any], PlainSerializer(_written)]
"""What `truing.rewards.make` reads: a name, fields, a reward model; in Python also a function."""


def reward_models(role: str, spec: Any) -> Iterator[tuple[str, str]]:
    """(role, name) of everything in a reward that may be a stage or a folder, however deep."""
    if isinstance(spec, str):
        yield role, spec
    if not isinstance(spec, Mapping):
        return
    if spec.get("name") == "model" and isinstance(spec.get("path"), str):
        yield f"{role}.path", spec["path"]
    for key, inner in spec.items():
        if isinstance(inner, Mapping):  # the parts of a mixture, the members of an ensemble
            for name, part in inner.items():
                yield from reward_models(f"{role}.{key}.{name}", part)


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, docstrings below fields are their docs."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, frozen=True, populate_by_name=True
    )


class Lora(Section):
    """Low-rank adapters: one frozen backbone serves policy, reference and reward model."""

    rank: Positive = 16
    """Rank of the update. Larger learns more and costs more."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha / rank."""
    target_modules: str | list[str] = "all-linear"
    """Module names that get an adapter, or 'all-linear'."""
    last_layers: Positive | None = None
    """Adapt only the last k layers (null: all). The backward pass ends where adapters end."""


class Model(Section):
    """The model the pipeline starts from."""

    path: str
    """A folder, a hub id, a .gguf file, 'package:NAME' for a GGUF inside an installed Python
    package, or 'random:ARCHITECTURE' for a tiny one with random weights and a byte tokenizer."""
    revision: str | None = None
    """For a hub id: the commit, tag or branch."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward pass. auto: bfloat16 where the machine is fast at it, float32
    elsewhere. Master weights and optimizer moments are float32 either way."""
    device: str = "auto"
    """'cpu', 'cuda', 'cuda:1', 'mps'; auto takes the first accelerator there is."""
    lora: Lora | None = None
    """Adapters instead of full fine-tuning; null trains every weight."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights a stage leaves behind."""


class Data(Section):
    """Rows that become groups, and how they are divided into train and test."""

    path: str
    """A file (.jsonl, .jsonl.gz, .json, .parquet, .csv), a folder of them, or a hub id."""
    test_path: str | None = None
    """The held-out rows. null: they are split off `path`, so that no prompt is in both."""
    test_rows: Annotated[float, Field(ge=0)] = 0.1
    """Without test_path: how many groups are held out; below 1 it is a share."""
    split: str = "train"
    """For a hub id: which of its splits is read."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Your column name -> the standard name (prompt, completion, chosen, rejected, label)."""
    bad_rows: Literal["error", "drop"] = "error"
    """What happens to a row that cannot be used: stop with the list, or leave it out; run.json then
    says how many, why and where."""
    max_rows: Positive | None = None
    """Read at most this many rows (null: all)."""
    max_length: Positive = 1024
    """Longest prompt + completion, in tokens. Longer rows are bad rows: nothing is cut."""


REWARD_ROLES = ("reward", "proxy", "gold", "annotator")
"""Fields of stages that hold a reward. What they name need not be a stage."""


class Stage(Section):
    """What every stage says."""

    method: str
    """An objective (sft, bradley_terry, dpo, ppo), or preferences, best_of_n, evaluate."""
    seed: int | None = None
    """Order and sampling of this stage (null: from the recipe's seed and the stage's name)."""

    def parents(self) -> dict[str, str]:
        """Role -> name of what this stage is made from ('model', 'data', a stage, a reward)."""
        named = {"from": "from_", "data": "data"}
        values = {role: getattr(self, field, None) for role, field in named.items()}
        rewards = [reward_models(role, getattr(self, role, None)) for role in REWARD_ROLES]
        return {role: value for role, value in values.items() if isinstance(value, str)} | {
            role: name for found in rewards for role, name in found
        }


class Sampling(Section):
    """How completions are drawn."""

    @property
    def truncates(self) -> bool:
        """Whether some tokens can never be drawn."""
        return bool(self.top_k or self.top_p < 1 or self.min_p)

    max_completion_length: Positive = 64
    """Tokens at most; a completion cut here is marked so and trains no stop token."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Logits are divided by it; 0 is greedy. Log-probs are taken at the same temperature."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Draw from the k likeliest tokens only (0: from all). Log-probs stay those of the whole
    distribution, here and with top_p and min_p: they are the ones the trainer computes. So a KL
    estimated from such samples is none, and a policy gradient is biased."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the fewest tokens that have this probability together (1: from all)."""
    min_p: Fraction = 0.0
    """Leave out tokens less likely than this share of the likeliest one's probability (0: none)."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """A completion also ends where its text first contains one of these. The token that completes
    it is kept, and the completion counts as finished."""
    sampling_batch_size: Positive = 64
    """Completions drawn at once. Changes speed and memory, not the text."""
    engine: Literal["auto", "local", "transformers"] = "auto"
    """What draws: local is ours; transformers is its generate, slower, for models whose attention
    ours cannot replace. auto takes local where it can and says so where it cannot."""
