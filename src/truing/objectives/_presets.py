"""Methods that are another method with other fields: one table.

A preset sets everything its paper sets, also keys of the credit rule and of sampling. Whatever a
recipe says itself wins over it. Importing this needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Preset:
    """A named setting of an objective."""

    of: str
    """The objective whose fields it sets."""
    keys: Mapping[str, Any]
    """What it sets, under the names a recipe would use."""
    summary: str
    """One line: what these fields make of it."""
    source: str
    """The paper that sets them so."""


PRESETS: Mapping[str, Preset] = {
    "dr_grpo": Preset(
        of="grpo",
        keys={
            "aggregation": "constant",
            "beta": 0.0,
            "baseline": "group",
            "scale_rewards": "none",
            "num_generations": 8,
            "score_normalization": "none",
        },
        summary="GRPO without its two biases: no deviation, no division by length; no KL.",
        source='Liu et al. 2025, "Understanding R1-Zero-Like Training" (arXiv 2503.20783)',
    ),
    "dapo": Preset(
        of="grpo",
        keys={
            "epsilon": 0.2,
            "epsilon_high": 0.28,
            "aggregation": "token",
            "beta": 0.0,
            # a fifth of the default limit of 64, as the paper's 4096 is of 20480
            "overlong_cache": 13,
            "dynamic_sampling": True,
            "num_generations": 16,
            "score_normalization": "none",
        },
        summary="Higher upper clip, token mean, silent groups redrawn, soft length limit, no KL. "
        "Set overlong_cache to a fifth of max_completion_length.",
        source='Yu et al. 2025, "DAPO: An Open-Source LLM Reinforcement Learning System at Scale" '
        "(arXiv 2503.14476)",
    ),
    "gspo_token": Preset(
        of="gspo",
        keys={"level": "token"},
        summary="GSPO's ratio per completion with an advantage per token.",
        source='Zheng et al. 2025, "Group Sequence Policy Optimization" (arXiv 2507.18071), eq. 13',
    ),
    "reinforce_pp": Preset(
        of="grpo",
        keys={
            "aggregation": "token",
            "beta": 0.0,
            "baseline": "none",
            "scale_rewards": "batch",
            "kl_placement": "token",
            "kl_coef": 0.01,
        },
        summary="REINFORCE++: one completion a prompt, KL per token in the return, advantages "
        "whitened over the rollout, PPO's clip.",
        source='Hu et al. 2025, "REINFORCE++" (arXiv 2501.03262); kl_coef as in its code',
    ),
    "reinforce_pp_baseline": Preset(
        of="grpo",
        keys={
            "aggregation": "token",
            "beta": 0.001,
            "kl_estimator": "k2",
            "baseline": "group",
            "scale_rewards": "batch",
            "num_generations": 8,
        },
        summary="REINFORCE++ with the group's mean taken off before whitening, and a k2 loss.",
        source='Hu et al. 2025, "REINFORCE++" (arXiv 2501.03262); beta as in its code',
    ),
    "remax": Preset(
        of="reinforce",
        keys={
            "aggregation": "sequence_sum",
            "baseline": "greedy",
            "scale_rewards": "none",
            "kl_placement": "token",
            "kl_coef": 0.05,
        },
        summary="REINFORCE judged against the policy's own greedy completion.",
        source='Li et al. 2023, "ReMax: A Simple, Effective, and Efficient Reinforcement Learning '
        'Method for Aligning Large Language Models" (arXiv 2310.10505); kl_coef as in its code',
    ),
}
