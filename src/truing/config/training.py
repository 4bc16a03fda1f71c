"""The knobs of training stages. The objective's and the credit rule's own stand beside them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from truing.config.sections import Fraction, Positive, RewardSpec, Sampling, Stage

WITHOUT_EFFECT = frozenset({"save_steps", "save_minutes", "save_total_limit"})
"""Knobs that change nothing about what a stage leaves behind: another value is no other stage."""
LIMITS = frozenset({"max_nonfinite_steps"})
"""Knobs that only stop a stage: what came through under one comes through under a larger one, the
same."""


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
    max_nonfinite_steps: Annotated[int, Field(ge=0)] = 0
    """So many steps whose loss, gradient or metrics are not finite numbers are skipped and written
    down (weights and moments stay, data and schedule move on); one more stops the run. Larger
    survives more bad batches; 0: the first one stops it, before the update."""
    batch_size: Positive = 32
    """Groups in one optimizer step (on-policy: completions)."""
    micro_batch_tokens: Positive = 2048
    """Tokens computed at once. Changes memory and speed, not the result."""
    num_train_epochs: Positive = 1
    """Passes over the data (on-policy: over each rollout)."""
    max_steps: Positive | None = None
    """Stop after this many optimizer steps (null: when the epochs are done)."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The stage leaves behind a moving average of its weights, of which each step keeps this
    share. Larger is smoother and lags more; null: the last weights. 0.992 in InstructGPT."""
    save_steps: Positive | None = None
    """Leave a checkpoint-N every so many optimizer steps (null: none for this reason)."""
    save_minutes: Annotated[float, Field(gt=0)] | None = 10.0
    """The same every so many minutes, for --resume; these go when the stage is done. Smaller loses
    less to a power cut; null: only where save_steps or a signal asks for one."""
    save_total_limit: Annotated[int, Field(ge=2)] = 2
    """So many checkpoints are kept, the newest ones. Larger needs more disk."""
    gradient_checkpointing: bool = False
    """Keep each layer's input only and compute the layer again in the backward pass. Takes about a
    third longer, and the memory of activations falls several times; the result stays the same."""


class Offline(Training):
    """Training on rows that are there."""

    eval_rows: Annotated[int, Field(ge=0)] = 0
    """Held-out groups on which the objective is measured, at the start, at the end and between."""
    eval_steps: Positive | None = None
    """Measure every so many optimizer steps (null: once halfway). Smaller shows more of the curve
    and costs a forward pass over eval_rows each time."""
    metric_for_best_model: str | None = None
    """Leave behind the weights that measured best by this name of metrics.jsonl, eval/loss or
    eval/rewards/accuracies, in place of the last ones. One more copy of what is trained; null: the
    last ones. Needs eval_rows."""
    greater_is_better: bool | None = None
    """Whether more of that metric is better (null: unless its name says loss)."""
    reference_logps: Literal["online", "cached"] = "online"
    """For objectives with a reference. online: computed in every step, beside the policy's. cached:
    computed once before training with the starting weights, kept on disk for later runs. Then no
    copy of the reference is in memory, and every epoch after the first (with a cache that is
    there, every epoch) saves its forward pass: 2 operations per weight and token."""

    @model_validator(mode="after")
    def _best_can_be_found(self) -> Self:
        if self.metric_for_best_model is not None and not self.eval_rows:
            raise ValueError("metric_for_best_model needs eval_rows: nothing is measured")
        if self.metric_for_best_model is not None and self.ema_decay is not None:
            raise ValueError("metric_for_best_model and ema_decay exclude each other")
        return self


class Rollouts(Training, Sampling):
    """Training on completions the policy draws itself, whatever is learnt from them."""

    reward: RewardSpec
    """What scores the completions: an earlier bradley_terry stage, or a reward by name."""
    num_rollouts: Positive = 32
    """How often prompts are drawn, answered and learnt from."""
    rollout_batch_size: Positive = 64
    """Prompts in one rollout."""
    reward_retries: Annotated[int, Field(ge=0)] = 2
    """How often a reward over texts that raised is asked again, after 1, 2, 4, ... seconds. Larger
    survives longer outages."""
    reward_timeout: Annotated[float, Field(gt=0)] | None = 1800.0
    """Seconds that a reward over texts may take for one rollout; then the run stops (null: never).
    Smaller notices a hanging one sooner."""


class OnPolicy(Rollouts):
    """Policy gradients on completions the policy draws itself."""

    num_generations: Positive = 1
    """Completions per prompt."""
    score_normalization: Literal["reference", "running", "running_scale", "none"] = "reference"
    """reference: scores are shifted and scaled to mean 0 and deviation 1 over the first rollout,
    which the reference itself drew (Ziegler et al.). running: over all scores so far.
    running_scale: that deviation, and the mean stays. none: as the reward gave them. Before the
    missing-EOS penalty and the clip."""
    kl_control: Literal["fixed", "adaptive", "budget"] = "fixed"
    """fixed: kl_coef stays. adaptive: it rises by up to a fifth of n / kl_horizon when the KL of a
    rollout of n completions is above kl_target, and falls below it (Ziegler et al.). budget: you
    choose the KL, and kl_coef is what it takes: the KL is led up to kl_target over the first 60 %
    of the rollouts, then held there."""
    kl_target: Annotated[float, Field(gt=0)] | None = None
    """Nats a completion that adaptive and budget aim at. Larger lets the policy go further. 6 in
    Ziegler et al."""
    kl_horizon: Positive = 10_000
    """Completions over which adaptive answers. Larger is slower. 10,000 in Ziegler et al."""
    approxkl_limit: Annotated[float, Field(gt=0)] | None = None
    """When ½ (log ratio)², averaged over the tokens of a step, exceeds this, what is left of the
    rollout is not learnt from. Smaller stops earlier; null: never. 0.015 in Spinning Up."""
    importance_correction: Literal[
        "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = "none"
    """For samplers whose probabilities are not the trainer's: advantages are multiplied by
    trainer/sampler, per token or whole completion, cut at importance_cap (truncate) or 0 outside
    [1/cap, cap] (mask). The local engine needs none."""
    importance_cap: Annotated[float, Field(gt=1)] = 3.0
    """Bound of that factor. Larger corrects more and varies more. 3 in TRL, 2 in verl."""
    logp_difference_limit: Annotated[float, Field(gt=0)] | None = 0.15
    """Nats a token that the sampler's log-probs may be from the trainer's, on average over a
    rollout; beyond it the run stops, for then it learns from another policy's samples (stale
    weights, other tokens). Smaller stops earlier; null: never. Rounding alone is 1e-6 in float32
    and 0.03 to 0.05 in bfloat16 (SmolLM2-135M); stale weights gave 0.2 (TRL #5312)."""
    dynamic_sampling: bool = False
    """Draw further prompts in place of those whose completions all score the same (DAPO)."""
    dynamic_rounds: Positive = 4
    """With dynamic_sampling, how often further prompts are drawn before going on with fewer."""
    opponents: Annotated[int, Field(ge=0)] = 0
    """So many completions of each prompt by an opponent, and scores compare with theirs. More say
    more exactly where a completion stands, and cost as much drawing; 0: scores as they are. What
    the reward gave is logged as rewards/plain/mean and rewards/opponent/mean."""
    opponent_mixture: Annotated[float, Field(gt=0, le=1)] = 1.0
    """m in (0, 1]: the opponent is π^(1 − m) · reference^m, token by token. Smaller is closer to
    the policy itself; 1: the reference. 0.125 in Nash-MD, 0.5 in TRL."""
    opponent_score: Literal["bradley_terry", "wins", "log_quantile"] = "bradley_terry"
    """bradley_terry: the mean of σ(s − s_k) over the opponent's scores, less ½. wins: the share of
    them that are lower, equals half, less ½: for judges (with one completion and one opponent).
    log_quantile: log of the share that is not higher: the order of scores, not their unit."""
    demonstrations_per_step: Positive = 8
    """Demonstrations of the same data beside each step, where ptx_coef asks for them."""


class Online(Rollouts):
    """A method for rows, on rows that the policy makes itself: drawn, scored, curated.

    The loss reads log-probs at temperature 1, as it does on rows that are there."""

    num_generations: Positive = 2
    """Completions per prompt. More let curation choose among more, and cost as much drawing."""
    curation: str | None = None
    """What makes rows of scored completions: pairs, verdicts, scored, best or against_reference
    (null: what the method learns from). Its own fields stand beside this one."""
    missing_eos_penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Subtracted from the score of a completion that was cut before its stop token, before
    curation. Larger makes cut ones lose; null: off."""
    sync_reference_rollouts: Positive | None = None
    """After so many rollouts, again and again, the reference becomes the policy (iterative DPO).
    Fewer is a looser leash; null: it stays what training began with."""


class ActorCritic(OnPolicy):
    """On-policy training with a critic (PPO)."""

    critic: Literal["policy", "reward"] = "policy"
    """policy: a value head on the policy's own trunk (Ziegler et al.). reward: a network of its
    own that starts as the reward model, trunk and head (InstructGPT): a second forward and
    backward pass, and no fight over the trunk. Needs a reward model."""
    critic_warmup_rollouts: Annotated[int, Field(ge=0)] = 0
    """Rollouts in which only the critic learns. More gives the first policy steps better
    advantages and costs those rollouts."""
