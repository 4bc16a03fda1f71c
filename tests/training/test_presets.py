"""A name stands for everything its paper sets: as a recipe of one line resolves it."""

from __future__ import annotations

import pytest

from truing import objectives
from truing.training.method import resolve

SAID = {
    "grpo": {"aggregation": "sequence", "baseline": "group", "scale_rewards": "group"},
    "dr_grpo": {
        "aggregation": "constant",
        "baseline": "group",
        "scale_rewards": "none",
        "beta": 0.0,
    },
    "dapo": {
        "aggregation": "token",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
        "baseline": "group",
        "scale_rewards": "group",
        "dynamic_sampling": True,
    },
    "rloo": {"baseline": "leave_one_out", "scale_rewards": "none", "kl_placement": "return"},
    "online_dpo": {"curation": "pairs", "selection": "best_worst", "temperature": 0.9, "beta": 0.1},
    "iterative_dpo": {"curation": "pairs", "num_generations": 4, "sync_reference_rollouts": 1},
    "raft": {"curation": "best", "take": 1, "num_generations": 8},
    "nash_md": {"baseline": "none", "opponents": 1, "opponent_mixture": 0.125, "kl_coef": 0.008},
    "vbon": {"opponent_score": "log_quantile", "opponent_mixture": 1.0, "kl_coef": 1 / 3},
    "remax": {"baseline": "greedy", "scale_rewards": "none", "aggregation": "sequence_sum"},
    "reinforce_pp": {
        "aggregation": "token",
        "baseline": "none",
        "scale_rewards": "batch",
        "kl_placement": "token",
        "num_generations": 1,
    },
    "reinforce_pp_baseline": {
        "aggregation": "token",
        "baseline": "group",
        "scale_rewards": "batch",
        "kl_estimator": "k2",
    },
    "gspo_token": {"level": "token", "baseline": "group"},
    "ipo_sum": {"length_normalize": False},
    "f_dpo_forward_kl": {"divergence": "forward_kl"},
    "f_dpo_alpha": {"divergence": "alpha"},
    "irpo": {"nll_coef": 1.0, "nll_average": "sequence"},
    "tr_dpo_hard": {"mixup_alpha": 1.0},
    "aot_unpaired": {"pairing": "unpaired"},
    "plackett_luce": {"form": "plackett_luce"},
    "pick_best": {"form": "best"},
}


@pytest.mark.parametrize("name", SAID)
def test_a_name_is_what_its_paper_says(name):
    reward = {"reward": "any"} if objectives.draws(name) else {}
    knobs = resolve("stage", {"method": name, **reward}, "test").knobs
    assert {key: knobs[key] for key in SAID[name]} == SAID[name]
