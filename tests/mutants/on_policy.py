"""Bugs in the details of on-policy training that papers leave to their code."""

from __future__ import annotations

from .mutant import Mutant

NORMALIZE, NORMALIZE_TESTS = "rollouts/normalize.py", ("rollouts/test_normalize.py",)
CONTROL, CONTROL_TESTS = "rollouts/kl_control.py", ("rollouts/test_kl_control.py",)
CORRECTION, CORRECTION_TESTS = "rollouts/correction.py", ("rollouts/test_correction.py",)
COLLECT, UNSCORED_TESTS = "rollouts/collect.py", ("rollouts/test_unscored.py",)
CREDIT, GAE = "rollouts/credit/base.py", "rollouts/credit/gae.py"
CONDITIONING_TESTS = ("objectives/test_reward_conditioning_oracle.py",)
LOGPROBS, GRADIENT_TESTS = "models/logprobs.py", ("models/test_entropy_gradient.py",)
PPO, GRPO = "objectives/policy_gradient/ppo.py", "objectives/policy_gradient/grpo.py"
BONUS_TESTS = ("objectives/test_entropy_bonus_oracle.py",)
ROLES, NETWORK = "models/roles.py", "models/network.py"
BUILD, NETWORKS, WIRING = "training/build.py", "training/networks.py", "training/on_policy.py"
STEP, OPTIM, SOURCES = "training/step.py", "training/optim.py", "training/sources.py"
CRITIC, RUNS = "training/test_critic.py::", "training/test_on_policy_runs.py::"
VALUES_TESTS = (CRITIC + "test_values_start_as_the_reward_models_scores_of_every_state",)
CHECKPOINT_TESTS = (CRITIC + "test_with_checkpointed_layers_the_gradients_are_the_same",)
WARM_UP_TESTS = (CRITIC + "test_in_the_warm_up_the_critic_learns_alone[own]",)
STOP = "training/test_early_stop.py::"
STOP_TESTS = (
    STOP + "test_the_steps_of_each_rollout_are_as_many_as_by_hand",
    STOP + "test_it_is_the_last_step_that_counts_and_the_limit_itself_is_still_near",
)
AVERAGING, AVERAGING_TESTS = "training/averaging.py", ("training/test_averaging.py",)

MUTANTS = (
    # scores
    Mutant(
        "running_mean_is_the_last_rollouts",
        NORMALIZE,
        "        self.mean += gap * fresh / total",
        "        self.mean = mean",
        NORMALIZE_TESTS,
        "moments of a batch taken for those of the run",
    ),
    Mutant(
        "running_spread_between_rollouts_lost",
        NORMALIZE,
        "        self.squares += gap**2 * self.count * fresh / total\n",
        "",
        NORMALIZE_TESTS,
        "variances averaged, the distance of their means forgotten",
    ),
    Mutant(
        "running_scale_also_shifts",
        NORMALIZE,
        'return 0.0 if self.kind in ("running_scale", "none") else self.mean',
        "return self.mean",
        NORMALIZE_TESTS,
        "TRL's use_score_scaling and use_score_norm are two switches",
    ),
    Mutant(
        "clip_before_the_penalty",
        CREDIT,
        '    scores_C = batch["scores_C"]\n    if missing',
        '    scores_C = batch["scores_C"]\n'
        "    scores_C = scores_C if clip is None else scores_C.clamp(-clip, clip)\n    if missing",
        CONDITIONING_TESTS,
        "the order of reward conditioning, undocumented in most code",
    ),
    Mutant(
        "whitened_rewards_lose_their_mean",
        GAE,
        "keep_mean=True",
        "keep_mean=False",
        CONDITIONING_TESTS,
        "torchtune's whiten has this flag the other way round",
    ),
    Mutant(
        "rewards_whitened_per_batch",
        GAE,
        "rewards = list(torch.split(whiten(torch.cat(rewards), keep_mean=True), sizes))",
        "rewards = [whiten(rewards_N, keep_mean=True) for rewards_N in rewards]",
        CONDITIONING_TESTS,
        "lm-human-preferences whitens per minibatch",
    ),
    Mutant(
        "missing_score_is_0",
        COLLECT,
        "        replace(completion, score=score)\n"
        "        for completion, score in zip(group.completions, scores, strict=True)\n"
        "        if score is not None\n",
        "        replace(completion, score=score or 0.0)\n"
        "        for completion, score in zip(group.completions, scores, strict=True)\n",
        UNSCORED_TESTS,
        "a reward that timed out teaches that the answer was bad",
    ),
    Mutant(
        "missing_part_is_0",
        COLLECT,
        "extend(v for v in values if v is not None)",
        "extend(v or 0.0 for v in values)",
        UNSCORED_TESTS,
        "a mean over numbers that are not there",
    ),
    Mutant(
        "unscored_baseline_is_kept",
        COLLECT,
        "            if baseline is not None\n",
        "",
        UNSCORED_TESTS,
        "ReMax against a score that does not exist",
    ),
    # the price of KL
    Mutant(
        "kl_error_not_clipped",
        CONTROL,
        "max(-ERROR_LIMIT, min(ERROR_LIMIT, kl / self.target - 1))",
        "kl / self.target - 1",
        CONTROL_TESTS,
        "one exploded rollout multiplies the price for ever",
    ),
    Mutant(
        "kl_controller_the_wrong_way_round",
        CONTROL,
        "min(ERROR_LIMIT, kl / self.target - 1)",
        "min(ERROR_LIMIT, 1 - kl / self.target)",
        CONTROL_TESTS,
        "far from the reference, drifting becomes cheaper",
    ),
    Mutant(
        "kl_horizon_in_rollouts",
        CONTROL,
        "error * completions / self.horizon",
        "error / self.horizon",
        CONTROL_TESTS,
        "a horizon of episodes counted in steps",
    ),
    Mutant(
        "budget_without_a_ramp",
        CONTROL,
        "planned = min(1.0, self.seen / (RAMP * self.rollouts))",
        "planned = 1.0",
        CONTROL_TESTS,
        "a policy at KL 0 is driven away at full speed",
    ),
    Mutant(
        "controller_is_shown_the_sum",
        COLLECT,
        "control.update(float(kl.total) / kl.weight, round(kl.weight))",
        "control.update(float(kl.total), round(kl.weight))",
        CONTROL_TESTS,
        "KL of a batch compared with a target per completion",
    ),
    Mutant(
        "controller_not_listened_to",
        COLLECT,
        "self.credit.with_kl_coef(control.value)(flat)",
        "self.credit(flat)",
        CONTROL_TESTS,
        "the price is logged and never paid",
    ),
    Mutant(
        "ramp_over_one_rollout",
        BUILD,
        "collector.kl_controller.rollouts = max(1, rollouts - collector.critic_rollouts)",
        "collector.kl_controller.rollouts = 1",
        (RUNS + "test_kl_control",),
        "a schedule that does not know how long the run is",
    ),
    Mutant(
        "horizon_stays_at_its_default",
        WIRING,
        "            horizon=training.kl_horizon,\n",
        "",
        (RUNS + "test_kl_horizon",),
        "a field that is read by nobody",
    ),
    # samplers that are not the trainer
    Mutant(
        "importance_upside_down",
        CORRECTION,
        'batch["sampled_logps_N"] - batch["sampler_logps_N"]',
        'batch["sampler_logps_N"] - batch["sampled_logps_N"]',
        CORRECTION_TESTS,
        "the correction doubles what it should undo",
    ),
    Mutant(
        "mask_of_one_side",
        CORRECTION,
        "(weight_N <= cap) & (weight_N >= 1 / cap)",
        "weight_N <= cap",
        CORRECTION_TESTS,
        "TRL's mask looks above the cap only",
    ),
    Mutant(
        "sequence_weights_are_the_tokens",
        CORRECTION,
        '    if kind.startswith("sequence"):',
        '    if kind == "sequence":',
        CORRECTION_TESTS,
        "a name that is matched whole where it is a prefix",
    ),
    Mutant(
        "importance_cap_stays_at_its_default",
        WIRING,
        "        importance_cap=training.importance_cap,\n",
        "",
        (RUNS + "test_importance_correction_and_its_cap",),
        "a field that is read by nobody",
    ),
    # entropy
    Mutant(
        "entropy_slope_without_the_entropy",
        LOGPROBS,
        "by_entropy[:, None] * (logps + entropy_N[:, None])",
        "by_entropy[:, None] * logps",
        GRADIENT_TESTS,
        "−π log π derived term by term, the normaliser forgotten",
    ),
    Mutant(
        "entropy_slope_without_the_temperature",
        LOGPROBS,
        "(None if g is None else g / ctx.temperature for g in gradients[:2])",
        "(None if g is None else g / ctx.temperature**i for i, g in zip((1, 0), gradients))",
        GRADIENT_TESTS,
        "logits / T differentiated as logits",
    ),
    Mutant(
        "entropy_is_punished",
        PPO,
        "total = total - self.entropy_coef *",
        "total = total + self.entropy_coef *",
        BONUS_TESTS,
        "a bonus added to a loss",
    ),
    Mutant(
        "demonstrations_have_a_bonus",
        PPO,
        "self.entropy_coef * outputs.entropy_N[mine_N].sum()",
        "self.entropy_coef * outputs.entropy_N.sum()",
        BONUS_TESTS,
        "pretraining text made less likely on purpose",
    ),
    Mutant(
        "bonus_is_a_sum_where_the_loss_is_a_mean",
        GRPO,
        "bonus = aggregate(outputs.entropy_N, *where, self.aggregation, "
        "self.max_completion_length)",
        "bonus = outputs.entropy_N.sum()",
        BONUS_TESTS,
        "a coefficient whose meaning hangs on the length",
    ),
    # the critic
    Mutant(
        "critic_reads_one_token_late",
        NETWORK,
        "_read(self.critic_head, self._hidden(batch)[batch.source_N])",
        "_read(self.critic_head, self._hidden(batch)[batch.target_N])",
        VALUES_TESTS,
        "V(s) that has already seen the action",
    ),
    Mutant(
        "critic_begins_with_the_policys_states",
        ROLES,
        'self.critic(batch.without("frozen_TH"), values=True)',
        "self.critic(batch, values=True)",
        VALUES_TESTS,
        "hidden states of another network taken from a cache",
    ),
    Mutant(
        "critic_adapter_under_checkpointing",
        NETWORKS,
        " and not method.training.gradient_checkpointing:",
        ":",
        CHECKPOINT_TESTS,
        "layers computed again in the backward pass, with whatever adapter is active then",
    ),
    Mutant(
        "everything_learns_in_the_warm_up",
        STEP,
        "            self.masters.drop_gradients(but=self.critic_names)",
        "            pass",
        WARM_UP_TESTS,
        "a warm-up that only lowers the learning rate",
    ),
    Mutant(
        "held_still_by_a_gradient_of_0",
        OPTIM,
        "                master.grad = None\n",
        "                master.grad = None if master.grad is None else 0 * master.grad\n",
        WARM_UP_TESTS,
        "AdamW decays weights whose gradient is 0",
    ),
    # what is left behind, and when it is enough
    Mutant(
        "average_follows_at_its_decay",
        AVERAGING,
        "average.lerp_(self.masters.masters[name].detach(), 1 - self.decay)",
        "average.lerp_(self.masters.masters[name].detach(), self.decay)",
        AVERAGING_TESTS,
        "decay and 1 − decay exchanged",
    ),
    Mutant(
        "average_is_the_weights_themselves",
        AVERAGING,
        "name: p.detach().clone() for name, p in masters.masters.items()",
        "name: p.detach() for name, p in masters.masters.items()",
        AVERAGING_TESTS,
        "a view where a copy was meant",
    ),
    Mutant(
        "average_not_in_the_compute_copies",
        AVERAGING,
        "        self.masters.publish()",
        "        pass",
        AVERAGING_TESTS,
        "evaluated with other weights than saved",
    ),
    Mutant(
        "average_kept_to_itself",
        "training/build.py",
        "            self.average.adopt()\n        if self.best",
        "            pass\n        if self.best",
        AVERAGING_TESTS,
        "an average is paid for, the last weights are saved",
    ),
    Mutant(
        "never_too_far",
        SOURCES,
        "if self.too_far or self.given >= self.total_steps:",
        "if self.given >= self.total_steps:",
        STOP_TESTS,
        "an early stop that is measured and not obeyed",
    ),
    Mutant(
        "too_far_is_too_near",
        SOURCES,
        "metrics[APPROXKL] > limit",
        "metrics[APPROXKL] < limit",
        STOP_TESTS,
        "a comparison turned round",
    ),
)
