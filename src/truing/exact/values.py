"""Credit over tokens, exactly: PPO's rewards of every token and the critic that is never wrong.

S contexts · V vocabulary · Y sentences · T positions of a sentence

With `context_values` as its critic, GAE points up the gradient of J for every λ (O6).
"""

from __future__ import annotations

import torch
from torch import Tensor

from truing.exact.language import Language
from truing.ops import kl_k1


def token_rewards(
    language: Language,
    logits_SV: Tensor,
    reference_logits_SV: Tensor,
    rewards_Y: Tensor,
    beta: float,
) -> Tensor:
    """R_t = −β (log π(y_t) − log ref(y_t)) + 1[t is last] r(y): PPO's rewards; they sum to J's.

    Shape [Y, T], 0 at padding, unit of the reward. Raises what `Language.token_logps` does.
    Source: algorithm sheet, 1.3; Ziegler et al. 2019 (arXiv 1909.08593), eq. 2.
    """
    drift_YT = kl_k1(language.token_logps(logits_SV), language.token_logps(reference_logits_SV))
    last_YT = torch.arange(language.max_length) == language.lengths_Y[:, None] - 1
    return rewards_Y[:, None] * last_YT - beta * drift_YT


def context_values(language: Language, logits_SV: Tensor, rewards_YT: Tensor) -> Tensor:
    """V(s) = E_π[Σ_{t' ≥ t} R_t' | context s at t]: what an exact critic answers.

    Shape [S], unit of the reward. `rewards_YT`: per token, 0 at padding, e.g. `token_rewards`.
    Raises what `Language.token_logps` does. Source: definition; algorithm sheet, O6.
    """
    logps_YT = language.token_logps(logits_SV)
    onward_YT, returns_YT = _sum_from_here_on(logps_YT), _sum_from_here_on(rewards_YT)
    mask_YT = language.mask_YT
    values_S = logps_YT.new_zeros(len(language.contexts))
    # π(rest of the sentence | context) weighs it: a product, so a context never reached is no 0/0
    parts = (onward_YT.exp() * returns_YT)[mask_YT]
    return values_S.index_add(0, language.contexts_YT[mask_YT], parts)


def _sum_from_here_on(values_YT: Tensor) -> Tensor:
    return values_YT.flip(-1).cumsum(-1).flip(-1)
