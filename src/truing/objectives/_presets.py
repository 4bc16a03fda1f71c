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
    "ipo_sum": Preset(
        of="ipo",
        keys={"length_normalize": False},
        summary="IPO on summed log-ratios: the paper's formula, for which its theorem holds.",
        source='Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from '
        'Human Preferences" (arXiv 2310.12036), eq. 17',
    ),
    "f_dpo_forward_kl": Preset(
        of="f_dpo",
        keys={"divergence": "forward_kl"},
        summary="DPO under forward KL: the policy is to cover the reference.",
        source='Wang et al. 2023, "Beyond Reverse KL: Generalizing Direct Preference Optimization '
        'with Diverse Divergence Constraints" (arXiv 2309.16240)',
    ),
    "f_dpo_alpha": Preset(
        of="f_dpo",
        keys={"divergence": "alpha"},
        summary="DPO under an alpha divergence, between reverse and forward KL.",
        source='Wang et al. 2023, "Beyond Reverse KL: Generalizing Direct Preference Optimization '
        'with Diverse Divergence Constraints" (arXiv 2309.16240)',
    ),
    "irpo": Preset(
        of="rpo",
        keys={"nll_coef": 1.0},
        summary="Iterative reasoning preference optimisation: DPO plus the chosen answer's NLL per "
        "token, both with weight 1.",
        source='Pang et al. 2024, "Iterative Reasoning Preference Optimization" (arXiv 2404.19733)',
    ),
    "tr_dpo_hard": Preset(
        of="tr_dpo",
        keys={"mixup_alpha": 1.0},
        summary="Trust-region DPO by hard updates: the policy replaces the reference.",
        source='Gorbatovski et al. 2024, "Learn Your Reference Model for Real Good Alignment" '
        "(arXiv 2404.09656), section 3",
    ),
    "aot_unpaired": Preset(
        of="aot",
        keys={"pairing": "unpaired"},
        summary="AOT between chosen and rejected answers, whichever prompts they belong to.",
        source='Melnyk et al. 2024, "Distributional Preference Alignment of LLMs via Optimal '
        'Transport" (arXiv 2406.05882), section 3',
    ),
    "plackett_luce": Preset(
        of="ranking",
        keys={"form": "plackett_luce"},
        summary="A reward model fitted to whole rankings, from the best completion down.",
        source='Plackett 1975, "The Analysis of Permutations" (Applied Statistics 24)',
    ),
    "pick_best": Preset(
        of="ranking",
        keys={"form": "best"},
        summary="A reward model that only learns which completion of a list is best.",
        source='Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences" '
        "(arXiv 1909.08593), eq. 1",
    ),
    "online_dpo": Preset(
        of="dpo",
        keys={"curation": "pairs", "num_generations": 2, "temperature": 0.9},
        summary="DPO on the policy's own samples: two a prompt, the higher score is chosen.",
        source='Guo et al. 2024, "Direct Language Model Alignment from Online AI Feedback" '
        "(arXiv 2402.04792), algorithm 1",
    ),
    "iterative_dpo": Preset(
        of="dpo",
        keys={
            "curation": "pairs",
            "num_generations": 4,
            "temperature": 0.7,
            "num_rollouts": 3,
            "rollout_batch_size": 1024,
            "sync_reference_rollouts": 1,
        },
        summary="A few rounds of DPO, best of four against worst, each round's reference being the "
        "policy it begins with.",
        source='Yuan et al. 2024, "Self-Rewarding Language Models" (arXiv 2401.10020), section 2.4',
    ),
    "raft": Preset(
        of="sft",
        keys={"curation": "best", "num_generations": 8},
        summary="Expert iteration: the policy imitates the best of its own samples.",
        source='Dong et al. 2023, "RAFT: Reward rAnked FineTuning for Generative Foundation Model '
        'Alignment" (arXiv 2304.06767), algorithm 1',
    ),
    "dr_grpo": Preset(
        of="grpo",
        keys={
            "aggregation": "constant",
            "beta": 0.0,
            "scale_rewards": "none",
        },
        summary="GRPO without its two biases: no deviation, no division by length; no KL.",
        source='Liu et al. 2025, "Understanding R1-Zero-Like Training: A Critical Perspective" '
        "(arXiv 2503.20783), section 3",
    ),
    "dapo": Preset(
        of="grpo",
        keys={
            "epsilon_high": 0.28,
            "aggregation": "token",
            "beta": 0.0,
            "overlong_cache": 0.2,  # of the limit, as the paper's 4096 is of 20480
            "dynamic_sampling": True,
            "num_generations": 16,
        },
        summary="Higher upper clip, token mean, silent groups redrawn, soft length limit, no KL.",
        source='Yu et al. 2025, "DAPO: An Open-Source LLM Reinforcement Learning System at Scale" '
        "(arXiv 2503.14476), eq. 8 to 13",
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
            "num_generations": 1,
            "score_normalization": "reference",
        },
        summary="REINFORCE++: one completion a prompt, KL per token in the return, advantages "
        "whitened over the rollout, PPO's clip.",
        source='Hu et al. 2025, "REINFORCE++: Stabilizing Critic-Free Policy Optimization with '
        'Global Advantage Normalization" (arXiv 2501.03262), kl_coef as in its code',
    ),
    "reinforce_pp_baseline": Preset(
        of="grpo",
        keys={
            "aggregation": "token",
            "beta": 0.001,
            "kl_estimator": "k2",
            "scale_rewards": "batch",
        },
        summary="REINFORCE++ with the group's mean taken off before whitening, and a k2 loss.",
        source='Hu et al. 2025, "REINFORCE++: Stabilizing Critic-Free Policy Optimization with '
        'Global Advantage Normalization" (arXiv 2501.03262), beta as in its code',
    ),
    "nash_md": Preset(
        of="reinforce",
        keys={
            "aggregation": "sequence_sum",
            "baseline": "none",
            "kl_placement": "token",
            "kl_coef": 0.008,
            "opponents": 1,
            "opponent_mixture": 0.125,
            "score_normalization": "none",
        },
        summary="Nash-MD: win more often against a mixture of oneself and the reference; each "
        "token pays for the drift from itself to the end.",
        source='Munos et al. 2023, "Nash Learning from Human Feedback" (arXiv 2312.00886), '
        "section 7",
    ),
    "vbon": Preset(
        of="rloo",
        keys={
            "kl_coef": 1 / 3,
            "opponents": 16,
            "opponent_score": "log_quantile",
            "score_normalization": "none",
        },
        summary="Variational Best-of-N, here of 4: the log of a completion's rank among the "
        "reference's, and a KL of 1 / (n - 1); also the backward part of BOND.",
        source='Amini et al. 2024, "Variational Best-of-N Alignment" (arXiv 2407.06057), section '
        '4; Sessa et al. 2024, "BOND: Aligning LLMs with Best-of-N Distillation" (arXiv '
        "2407.14622), section 4",
    ),
    "remax": Preset(
        of="reinforce",
        keys={
            "aggregation": "sequence_sum",
            "baseline": "greedy",
            "kl_placement": "token",
            "kl_coef": 0.05,
        },
        summary="REINFORCE judged against the policy's own greedy completion.",
        source='Li et al. 2023, "ReMax: A Simple, Effective, and Efficient Reinforcement Learning '
        'Method for Aligning Large Language Models" (arXiv 2310.10505), kl_coef as in its code',
    ),
}
