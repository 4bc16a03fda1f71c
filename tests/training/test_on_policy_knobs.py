"""Every knob of on-policy training has a test that turns it and sees what its docstring says.

`SHOWN` says which; a field that is in no entry fails here, so none can come without its test.
Those that need a whole run are in test_on_policy_runs.py.
"""

from __future__ import annotations

import dataclasses
import re

import pytest

from objectives.test_policy_gradient_knobs import MOVES
from truing import config, objectives
from truing.objectives.policy_gradient._base import PolicyGradient
from truing.rollouts import credit

OWNERS = ("ppo", "grpo", "rloo", "reinforce", "cispo", "gspo", "gmpo", "sapo")
SHOWN_BY: dict[str, dict[str, str]] = {
    "training/test_method.py": {
        "method": "test_a_preset_sets_everything_its_paper_sets_and_the_recipe_wins",
    },
    "training/test_on_policy_runs.py": {
        "seed": "test_seed",
        "learning_rate": "test_learning_rate",
        "batch_size": "test_batch_size",
        "micro_batch_tokens": "test_micro_batch_tokens",
        "num_train_epochs": "test_num_train_epochs",
        "max_steps": "test_max_steps",
        "max_completion_length": "test_max_completion_length",
        "temperature": "test_temperature",
        "top_k": "test_truncations_narrow_what_is_drawn",
        "top_p": "test_truncations_narrow_what_is_drawn",
        "min_p": "test_truncations_narrow_what_is_drawn",
        "stop": "test_stop",
        "num_rollouts": "test_num_rollouts",
        "rollout_batch_size": "test_rollout_batch_size",
        "num_generations": "test_num_generations",
        "score_normalization": "test_score_normalization",
        "kl_control": "test_kl_control",
        "kl_target": "test_kl_target",
        "kl_horizon": "test_kl_horizon",
        "importance_correction": "test_importance_correction_and_its_cap",
        "importance_cap": "test_importance_correction_and_its_cap",
        "logp_difference_limit": "test_importance_correction_and_its_cap",
        "dynamic_rounds": "test_dynamic_rounds",
        "demonstrations_per_step": "test_demonstrations_per_step",
    },
    "pipeline/test_graph.py": {
        "from": "test_parents_come_first_whatever_the_order_of_the_recipe",
        "data": "test_parents_come_first_whatever_the_order_of_the_recipe",
    },
    "training/test_every_method.py": {
        "reward": "test_the_reward_rises",
    },
    "training/test_step.py": {
        "lr_scheduler_type": "test_schedule_rises_and_falls",
        "warmup_ratio": "test_schedule_rises_and_falls",
    },
    "training/test_plain_step.py": {
        "weight_decay": "test_vectors_are_not_decayed_and_matrices_are",
        "max_grad_norm": "test_the_clip_is_on_the_mean",
    },
    "training/test_resume.py": {
        "save_steps": "test_save_steps",
        "save_minutes": "test_save_minutes",
        "save_total_limit": "test_save_total_limit",
    },
    "training/test_averaging.py": {
        "ema_decay": "test_a_larger_decay_lags_more",
    },
    "training/test_critic.py": {
        "gradient_checkpointing": "test_with_checkpointed_layers_the_gradients_are_the_same",
        "critic": "test_only_the_value_loss_teaches_the_critic_and_none_of_it_the_policy",
        "critic_warmup_rollouts": "test_in_the_warm_up_the_critic_learns_alone",
    },
    "rollouts/test_sampler.py": {
        "sampling_batch_size": "test_the_text_does_not_depend_on_what_is_drawn_beside_it",
    },
    "rollouts/test_sampler_engines.py": {
        "engine": "test_the_engine_asked_for_draws",
    },
    "training/test_guards.py": {
        "max_nonfinite_steps": "test_a_skipped_step_changes_nothing_but_the_place",
    },
    "training/test_early_stop.py": {
        "approxkl_limit": "test_a_smaller_limit_stops_earlier",
    },
    "rollouts/test_collect_extras.py": {
        "dynamic_sampling": "test_dynamic_sampling_redraws_until_the_rollout_is_full"
        "_of_groups_that_differ",
    },
    "training/test_online.py": {
        "opponents": "test_policy_gradients_compare_with_an_opponent",
        "opponent_mixture": "test_the_opponent_is_the_reference_or_nearer_to_the_policy",
    },
    "pipeline/test_rewards_in_a_run.py": {
        "reward_retries": "test_a_reward_is_asked_again_as_often_as_the_recipe_says",
        "reward_timeout": "test_a_reward_may_take_as_long_as_the_recipe_says",
    },
    "rollouts/test_opponents.py": {
        "opponent_score": "test_the_quantile_reads_nothing_but_the_order",
    },
    "objectives/test_gae_oracle.py": {
        "gae.kl_coef": "test_drifting_away_from_the_reference_costs",
        "gae.gamma": "test_returns_of_the_skyrl_vector",
        "gae.lam": "test_a_score_at_the_end_is_handed_back_by_lambda",
        "gae.whiten_advantages": "test_whitening_removes_the_mean",
        "gae.missing_eos_penalty": "test_the_missing_stop_token_is_charged_to_those_that_miss_it",
    },
    "objectives/test_reward_conditioning_oracle.py": {
        "gae.score_clip": "test_a_smaller_clip_bounds_more",
        "gae.whiten_rewards": "test_whitening_takes_the_rewards_size_away",
        "group.score_clip": "test_a_smaller_clip_bounds_more",
    },
    "objectives/test_group_credit_oracle.py": {
        "group.baseline": "test_every_rule_in_loops",
        "group.scale_rewards": "test_a_constant_per_prompt_cancels_and_only_scaled_rewards"
        "_ignore_the_unit",
        "group.kl_placement": "test_every_rule_in_loops",
        "group.missing_eos_penalty": "test_every_rule_in_loops",
        "group.overlong_filter": "test_the_overlong_filter_drops_the_loss_but_not_the_baseline",
    },
    "rollouts/test_overlong_share.py": {
        "group.max_completion_length": "test_a_share_follows_the_limit_of_the_stage",
    },
    "objectives/test_policy_gradient_vectors.py": {
        "grpo.kl_estimator": "test_the_kl_loss",
    },
    "objectives/test_group_methods_oracle.py": {
        "grpo.aggregation": "test_every_aggregation",
        "reinforce.aggregation": "test_every_aggregation",
        "cispo.aggregation": "test_every_aggregation",
        "sapo.aggregation": "test_every_aggregation",
    },
    "objectives/test_sequence_ratio_oracle.py": {
        "gspo.level": "test_both_levels_of_gspo_pull_alike_where_the_advantage_is_constant",
    },
    "objectives/test_policy_gradient_knobs.py": {
        "group.scale_epsilon": "test_scale_epsilon",
        "group.kl_coef": "test_kl_coef_of_groups",
        "group.overlong_cache": "test_overlong_cache",
    },
}
"""File -> knob -> the test that shows its direction; knobs of the stage bear no prefix."""
SHOWN = {knob: (file, name) for file, tests in SHOWN_BY.items() for knob, name in tests.items()}
NUMBERS = (
    "objectives/test_policy_gradient_knobs.py",
    "test_a_number_moves_the_gradient_as_its_field_says",
)
SHOWN |= dict.fromkeys(MOVES, NUMBERS)


def fields_of(owner):
    """The keys that a recipe may set there."""
    if owner == "recipe":
        return {f.alias or name for name, f in config.ActorCritic.model_fields.items()}
    kind = objectives.find(owner) if owner in OWNERS else credit.find(owner)
    return {f"{owner}.{f.name}" for f in dataclasses.fields(kind)}


def test_every_field_has_a_test_and_every_entry_a_field():
    there = set().union(*(fields_of(owner) for owner in ("recipe", "gae", "group", *OWNERS)))
    assert there - SHOWN.keys() == set(), "a knob without a test that turns it"
    assert SHOWN.keys() - there == set(), "an entry for a knob that is gone"


def test_no_policy_gradient_method_is_missing():
    kinds = {name: objectives.find(name) for name in objectives.names()}
    critics = {name for name, kind in kinds.items() if kind.trains == "policy+value"}
    assert critics | {n for n, k in kinds.items() if issubclass(k, PolicyGradient)} == set(OWNERS)


@pytest.mark.parametrize("knob", SHOWN)
def test_the_test_is_there(knob, root):
    file, name = SHOWN[knob]
    text = (root / "tests" / file).read_text(encoding="utf-8")
    assert re.search(rf"^def {re.escape(name)}\(", text, re.MULTILINE), SHOWN[knob]
