"""The knobs of training stages. The objective's and the credit rule's own stand beside them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from truing.config.sections import Fraction, Positive, Sampling, Stage


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
