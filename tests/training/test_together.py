"""Keys that are right one by one and wrong together are refused before anything is loaded."""

from __future__ import annotations

import pytest

from truing.errors import UsageError
from truing.training.method import resolve

PPO, GRPO = {"method": "ppo"}, {"method": "grpo"}


@pytest.mark.parametrize(
    ("wrong", "right", "words"),
    [
        # a key that nothing listens to
        (PPO | {"kl_target": 6.0}, {"kl_control": "budget"}, "kl_target.*kl_control is fixed"),
        (PPO | {"kl_horizon": 99}, {"kl_control": "adaptive", "kl_target": 6.0}, "kl_horizon"),
        (PPO | {"importance_cap": 2.0}, {"importance_correction": "token_mask"}, "importance_cap"),
        (GRPO | {"dynamic_rounds": 2}, {"dynamic_sampling": True}, "dynamic_rounds"),
        (GRPO | {"opponent_mixture": 0.5}, {"opponents": 1}, "opponent_mixture"),
        (GRPO | {"opponent_score": "wins"}, {"opponents": 1}, "opponent_score"),
        (PPO | {"demonstrations_per_step": 2}, {"ptx_coef": 1.0}, "demonstrations_per_step"),
        (GRPO | {"kl_estimator": "k2", "beta": 0.0}, {"beta": 0.1}, "kl_estimator"),
        # a group of one, and groups that do not fill a step
        (GRPO | {"num_generations": 1}, {"num_generations": 2}, "alone in its group"),
        (GRPO | {"num_generations": 64}, {"batch_size": 128}, "whole groups of 64"),
        (GRPO | {"batch_size": 20}, {"batch_size": 24}, "whole groups of 8"),
        # a correction of what cannot be seen
        (
            GRPO | {"top_k": 50, "importance_correction": "token_truncate"},
            {"top_k": 0},
            "whole distribution",
        ),
        # a warm-up that max_steps ends
        (
            PPO | {"critic_warmup_rollouts": 2, "max_steps": 4, "rollout_batch_size": 64},
            {"max_steps": 5},
            "2 of 2 rollouts",
        ),
        # a price that one rollout would turn negative
        (
            PPO | {"kl_control": "adaptive", "kl_target": 6.0, "kl_horizon": 12},
            {"kl_horizon": 13},
            "more than itself",
        ),
        ({"method": "remax", "missing_eos_penalty": 1.0}, {"missing_eos_penalty": None}, "greedy"),
        ({"method": "kto", "rollout_batch_size": 1}, {"rollout_batch_size": 2}, "one is alone"),
        (PPO | {"temperature": 0}, {"temperature": 0.1}, "variety"),
    ],
)
def test_one_is_refused_and_the_other_is_not(wrong, right, words):
    with pytest.raises(UsageError, match=words) as caught:
        resolve("s", wrong | {"reward": "vader"}, "my.yaml")
    assert str(caught.value).startswith("my.yaml: 'stages.s.")
    resolve("s", wrong | right | {"reward": "vader"}, "my.yaml")


def test_what_a_preset_says_is_not_held_against_the_recipe():
    """dapo sets dynamic sampling's rounds; turning it off is no mistake."""
    resolve("s", {"method": "dapo", "reward": "vader", "dynamic_sampling": False}, "my.yaml")


def test_a_reference_that_only_the_curation_reads_may_be_renewed():
    raw = {"method": "simpo", "reward": "vader", "sync_reference_rollouts": 2}
    with pytest.raises(UsageError, match="reads no reference"):
        resolve("s", raw, "my.yaml")
    resolve("s", raw | {"curation": "against_reference"}, "my.yaml")
