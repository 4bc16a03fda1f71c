"""The recipe: what a user may write, checked before anything is loaded. No torch.

A recipe is a graph of named stages. Every stage has a `method`: `preferences`, `best_of_n` and
`evaluate` are described here; any other method is an objective, whose own fields (`beta`, ...)
stand beside the training fields and are checked by training/build.py, which knows the class.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from truing.errors import UsageError, suggest

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


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
    """What happens to a row that cannot be used: stop with the list, or drop, count and say."""
    max_rows: Positive | None = None
    """Read at most this many rows (null: all)."""
    max_length: Positive = 1024
    """Longest prompt + completion, in tokens. Longer rows are bad rows: nothing is cut."""


class Stage(Section):
    """What every stage says."""

    method: str
    """An objective (sft, bradley_terry, dpo, ppo), or preferences, best_of_n, evaluate."""
    seed: int | None = None
    """Order and sampling of this stage (null: from the recipe's seed and the stage's name)."""

    def parents(self) -> dict[str, str]:
        """Role -> name of what this stage is made from ('model', 'data', a stage, a reward)."""
        named = {"from": "from_", "data": "data", "reward": "reward"}
        values = {role: getattr(self, field, None) for role, field in named.items()}
        return {role: value for role, value in values.items() if isinstance(value, str)}


class Sampling(Section):
    """How completions are drawn."""

    max_completion_length: Positive = 64
    """Tokens at most; a completion cut here is marked so and trains no stop token."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Logits are divided by it; 0 is greedy. Log-probs are taken at the same temperature."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Draw from the k likeliest tokens only (0: from all). Log-probs stay those of the whole
    distribution, here and with top_p and min_p: they are the ones the trainer computes."""
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


class Training(Stage):
    """The knobs of every training stage. The objective's own fields stand beside them."""

    from_: str = Field("model", alias="from")
    """Where the weights come from: an earlier stage, or 'model' for the recipe's model."""
    data: str = "data"
    """Where the groups come from: 'data', or an earlier stage that makes them."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate of AdamW."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """How it falls after the warm-up."""
    warmup_ratio: Fraction = 0.1
    """Share of the steps in which it rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """The global gradient norm is clipped to this."""
    batch_size: Positive = 32
    """Groups in one optimizer step (on-policy: completions)."""
    micro_batch_tokens: Positive = 2048
    """Padded tokens computed at once. Changes memory and speed, not the result."""
    num_train_epochs: Positive = 1
    """Passes over the data (on-policy: over each rollout)."""
    max_steps: Positive | None = None
    """Stop after this many optimizer steps (null: when the epochs are done)."""
    gradient_checkpointing: bool = False
    """Keep each layer's input only and compute the layer again in the backward pass. Takes about a
    third longer, and the memory of activations falls several times; the result stays the same."""


class Offline(Training):
    """Training on rows that are there."""

    eval_rows: Annotated[int, Field(ge=0)] = 0
    """Held-out groups on which the objective is measured at the start, halfway, and the end."""
    reference_logps: Literal["online", "cached"] = "online"
    """For objectives with a reference. online: computed in every step, beside the policy's. cached:
    computed once before training with the starting weights, kept on disk for later runs. Then no
    copy of the reference is in memory, and every epoch after the first (with a cache that is
    there, every epoch) saves its forward pass: 2 operations per weight and token."""


class OnPolicy(Training, Sampling):
    """Training on completions the policy draws itself."""

    reward: str | dict[str, Any]
    """What scores the completions: an earlier bradley_terry stage, or a reward by name."""
    num_rollouts: Positive = 32
    """How often prompts are drawn, answered and learnt from."""
    rollout_batch_size: Positive = 64
    """Prompts in one rollout."""
    num_generations: Positive = 1
    """Completions per prompt."""
    score_normalization: Literal["reference", "none"] = "reference"
    """reference: scores are shifted and scaled to mean 0 and deviation 1 over the first rollout,
    which the reference itself drew (Ziegler et al.). none: as the reward gave them."""
    dynamic_sampling: bool = False
    """Draw further prompts in place of those whose completions all score the same (DAPO)."""
    dynamic_rounds: Positive = 4
    """With dynamic_sampling, how often further prompts are drawn before going on with fewer."""
    demonstrations_per_step: Positive = 8
    """Demonstrations of the same data beside each step, where ptx_coef asks for them."""


class Preferences(Stage, Sampling):
    """Draw several completions a prompt and let a simulated annotator choose between them."""

    method: Literal["preferences"] = "preferences"
    from_: str = Field("model", alias="from")
    """Who writes the completions."""
    data: str = "data"
    """Where the prompts come from."""
    annotator: str | dict[str, Any]
    """The reward that plays the human. No later stage sees it, only its choices."""
    annotator_temperature: Annotated[float, Field(gt=0)] = 0.1
    """P(a over b) = σ((score_a − score_b) / temperature). Smaller is a surer annotator."""
    num_generations: Annotated[int, Field(ge=2)] = 4
    """Completions per prompt; neighbours (1,2), (3,4), ... are compared."""
    train_prompts: Positive | None = None
    """Use at most this many prompts of the train split (null: all)."""
    test_prompts: Positive | None = None
    """The same for the test split."""


class BestOfN(Stage, Sampling):
    """Draw n completions a prompt and keep the one the reward model likes best."""

    method: Literal["best_of_n"] = "best_of_n"
    from_: str = Field("model", alias="from")
    """Who writes the completions."""
    reward: str | dict[str, Any]
    """What picks: an earlier bradley_terry stage, or a reward by name."""
    data: str = "data"
    """Where the (held-out) prompts come from."""
    num_generations: Annotated[int, Field(ge=1)] = 8
    """n. KL to the sampler is at most log n − (n − 1)/n nats."""
    test_prompts: Positive | None = None
    """Use at most this many prompts of the test split (null: all)."""


class Evaluate(Stage, Sampling):
    """Draw from several policies on the same held-out prompts with the same seeds; compare."""

    method: Literal["evaluate"] = "evaluate"
    policies: dict[str, str]
    """Label -> stage ('model' for the starting model). A best_of_n stage counts as a policy."""
    reference: str
    """The stage KL is measured to and differences are taken from."""
    data: str = "data"
    """Where the prompts come from (their test split)."""
    proxy: str | None = None
    """The reward-model stage whose score is the proxy reward."""
    gold: str | dict[str, Any] | None = None
    """The annotator's reward, if there is one: it is only ever seen here."""
    test_prompts: Positive | None = None
    """Use at most this many prompts of the test split (null: all)."""
    show_samples: Annotated[int, Field(ge=0)] = 6
    """Prompts whose completions are shown side by side in the report (0: none)."""

    def parents(self) -> dict[str, str]:
        policies = {f"policy {label}": stage for label, stage in self.policies.items()}
        proxy = {} if self.proxy is None else {"reward": self.proxy}
        return {**policies, "reference": self.reference, "data": self.data, **proxy}


class Recipe(Section):
    """A graph of stages."""

    name: str
    """Names the run."""
    output: str
    """Folder of the run. Each stage has a run directory of its own in it."""
    seed: int = 0
    """Everything random is derived from it."""
    model: Model
    data: Data
    stages: dict[str, dict[str, Any]]


PIPELINE_METHODS: Mapping[str, type[Stage]] = {
    "preferences": Preferences,
    "best_of_n": BestOfN,
    "evaluate": Evaluate,
}
"""Methods that are not objectives, and their schema."""

RESERVED_STAGE_NAMES = frozenset({"model", "data"})

S = TypeVar("S", bound=Section)


def read_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """A recipe from YAML, with `a.b=c` overrides. Raises UsageError: what, where, what to do."""
    if not path.is_file():
        raise UsageError(
            "no such recipe", where=str(path), remedy="give a .yaml file; see recipes/"
        )
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UsageError(
            f"not valid YAML: {error}", where=str(path), remedy="correct the line it names"
        ) from error
    if not isinstance(raw, dict):
        raise UsageError("a recipe is a mapping", where=str(path), remedy="see recipes/")
    for override in overrides or []:
        apply_override(raw, override)
    return check_recipe(raw, where=str(path))


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set `a.b=c` in place; the value is read as YAML."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UsageError(
            f"'{override}' is not of the form a.b=c", remedy="write for example data.path=my.jsonl"
        )
    *parents, last = key.split(".")
    node: Any = raw
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UsageError(f"'{key}': '{parent}' has no keys below it", remedy="check the path")
    node[last] = yaml.safe_load(value)


def check_recipe(raw: dict[str, Any], where: str) -> Recipe:
    """The whole recipe as a typed object; stages keep their raw keys until they are built."""
    recipe = check(Recipe, raw, where)
    for name, stage in recipe.stages.items():
        if name in RESERVED_STAGE_NAMES or not name.isidentifier():
            raise UsageError(
                f"a stage cannot be called '{name}'",
                where=f"{where}: stages",
                remedy="use letters, digits and _; 'model' and 'data' are taken",
            )
        if "method" not in stage:
            raise UsageError(
                f"stages.{name} has no method",
                where=where,
                remedy="add method: sft, bradley_terry, dpo, ppo, grpo, ... (`truing explain` "
                "lists them), preferences, best_of_n or evaluate",
            )
    return recipe


def check(schema: type[S], raw: Mapping[str, Any], where: str, prefix: str = "") -> S:
    """`raw` as a `schema`. Raises UsageError that names the key, the rule and the nearest name."""
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise explain_validation(error, schema, where, prefix) from error


def explain_validation(
    error: ValidationError, schema: type[BaseModel], where: str, prefix: str = ""
) -> UsageError:
    """The first problem pydantic found, in the words of a recipe."""
    problem = error.errors()[0]
    location = [str(part) for part in problem["loc"]]
    key = ".".join(filter(None, [prefix, *location]))
    if problem["type"] == "extra_forbidden":
        valid = _fields_at(schema, location[:-1])
        return UsageError(f"unknown key '{key}'", where=where, remedy=suggest(location[-1], valid))
    if problem["type"] == "missing":
        return UsageError(f"'{key}' is missing", where=where, remedy=f"add '{key}'")
    return UsageError(
        f"'{key}': {problem['msg']} (got {problem['input']!r})",
        where=where,
        remedy="correct the value; `truing explain recipe` lists every key",
    )


def _fields_at(schema: type[BaseModel], location: list[str]) -> list[str]:
    """Names a user may write at a dotted place of a schema."""
    for part in location:
        by_name = {f.alias or n: f.annotation for n, f in schema.model_fields.items()}
        inner = [t for t in _members(by_name.get(part)) if isinstance(t, type)]
        sections = [t for t in inner if issubclass(t, BaseModel)]
        if not sections:
            return []
        schema = sections[0]
    return [field.alias or name for name, field in schema.model_fields.items()]


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the annotation itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)
