"""Losses over preferences with every pair counted: what DPO, IPO and reward models converge to.

Y sentences · preferences_YY[i, j] = P(i ≻ j), with P(i ≻ j) + P(j ≻ i) = 1; it may be intransitive
pairs_YY[i, j] ≥ 0: how often i is shown with j, in that order; a loss is its sum over all pairs

h = β (ρ_i − ρ_j) with ρ(y) = log π(y) − log ref(y), summed over tokens, nats.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.errors import UsageError
from truing.ops import kl_k1

LARGEST_TABLE = 4096
"""Sentences a table of pairs may have: 128 MiB of float64. Five tokens of a vocabulary of six."""


def bradley_terry(rewards_Y: Tensor) -> Tensor:
    """P(i ≻ j) = σ(r_i − r_j). Shape [Y, Y]; only differences of rewards count.

    Raises UsageError above 4096 sentences. Source: Bradley and Terry 1952.
    """
    _refuse_large(rewards_Y)
    return torch.sigmoid(rewards_Y[:, None] - rewards_Y)


def independent_pairs(mu_Y: Tensor) -> Tensor:
    """Both sentences drawn from μ: μ_i μ_j. Shape [Y, Y]; `mu_Y` sums to one.

    Raises UsageError above 4096 sentences. Source: algorithm sheet, 1.8.
    """
    _refuse_large(mu_Y)
    return torch.outer(mu_Y, mu_Y)


def bradley_terry_loss(
    scores_Y: Tensor, preferences_YY: Tensor, pairs_YY: Tensor, centering: float = 0.0
) -> Tensor:
    """−Σ_ij w_ij [P_ij log σ(s_i − s_j) + P_ji log σ(s_j − s_i)] + c Σ_ij w_ij (s_i + s_j)².

    Scalar, nats; `centering` c ≥ 0 picks one of the shifts of s, which the first term cannot tell
    apart, and shrinks differences a little. Raises UsageError for preferences that do not sum to 1.
    Source: algorithm sheet, 1.2 and O34; the centring term is Eisenstein et al. 2023
    (arXiv 2312.09244).
    """
    _refuse_preferences(preferences_YY)
    margins_YY = scores_Y[:, None] - scores_Y
    fit_YY = preferences_YY * logsigmoid(margins_YY) + preferences_YY.T * logsigmoid(-margins_YY)
    centre_YY = (scores_Y[:, None] + scores_Y).square()
    return (pairs_YY * (centering * centre_YY - fit_YY)).sum()


def dpo_loss(
    logps_Y: Tensor,
    reference_logps_Y: Tensor,
    preferences_YY: Tensor,
    pairs_YY: Tensor,
    beta: float,
) -> Tensor:
    """The Bradley-Terry loss of the implicit rewards β ρ: −Σ_ij w_ij Σ_labels P log σ(±h).

    Scalar, nats; log 2 at the reference where the pairs sum to one; β > 0. Raises UsageError for
    preferences that do not sum to 1. Source: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7.
    """
    implicit_Y = beta * kl_k1(logps_Y, reference_logps_Y)
    return bradley_terry_loss(implicit_Y, preferences_YY, pairs_YY)


def ipo_loss(
    logps_Y: Tensor, reference_logps_Y: Tensor, preferences_YY: Tensor, pairs_YY: Tensor, tau: float
) -> Tensor:
    """Σ_ij w_ij Σ_labels P (±(ρ_i − ρ_j) − 1/(2τ))²: a regression, so its pull is bounded.

    Scalar, nats²; τ > 0; log-ratios are summed, as its optimum is only known for the sum. Raises
    UsageError for preferences that do not sum to 1. Source: Azar et al. 2023 (arXiv 2310.12036).
    """
    _refuse_preferences(preferences_YY)
    ratio_Y = kl_k1(logps_Y, reference_logps_Y)
    margins_YY, target = ratio_Y[:, None] - ratio_Y, 1 / (2 * tau)
    won_YY, lost_YY = (margins_YY - target).square(), (-margins_YY - target).square()
    return (pairs_YY * (preferences_YY * won_YY + preferences_YY.T * lost_YY)).sum()


def ipo_optimum(
    reference_logps_Y: Tensor, preferences_YY: Tensor, mu_Y: Tensor, tau: float
) -> Tensor:
    """log π(y) = log ref(y) + P(y ≻ μ)/τ − log Z: the minimum of `ipo_loss` for pairs from μ.

    Shape [Y], nats; any preferences, intransitive ones too; μ > 0 everywhere, τ > 0. Raises
    UsageError for preferences that do not sum to 1. Source: algorithm sheet, O26.
    """
    _refuse_preferences(preferences_YY)
    return (reference_logps_Y + preferences_YY @ mu_Y / tau).log_softmax(-1)


def win_rate(logps_Y: Tensor, opponent_logps_Y: Tensor, preferences_YY: Tensor) -> Tensor:
    """P(π ≻ q) = Σ_ij π_i P_ij q_j, in [0, 1]; ½ against itself.

    Scalar. Raises UsageError for preferences that do not sum to 1. Source: definition.
    """
    _refuse_preferences(preferences_YY)
    return logps_Y.exp() @ preferences_YY @ opponent_logps_Y.exp()


def components(pairs_YY: Tensor) -> Tensor:
    """Which sentences are compared, if only through others: one number for each island.

    Shape [Y], integers from 0 in order of first appearance; a sentence in no pair is an island of
    its own. Raises nothing. Source: algorithm sheet, O22.
    """
    linked_YY = (pairs_YY > 0) | (pairs_YY.T > 0)
    linked_YY = linked_YY | torch.eye(len(pairs_YY), dtype=torch.bool)
    first_Y = torch.arange(len(pairs_YY))
    while True:
        nearest_Y = torch.where(linked_YY, first_Y, len(pairs_YY)).amin(-1)
        if bool((nearest_Y == first_Y).all()):
            islands_Y = (first_Y == torch.arange(len(first_Y))).cumsum(0) - 1
            return islands_Y[first_Y]
        first_Y = nearest_Y


def flat_directions(pairs_YY: Tensor) -> int:
    """Islands − 1: along so many directions mass moves and no pairwise loss sees it.

    ≥ 0; 0 means that the minimiser is unique. Raises nothing. Source: algorithm sheet, O22.
    """
    return int(components(pairs_YY).max())


def _refuse_large(values_Y: Tensor) -> None:
    if len(values_Y) > LARGEST_TABLE:
        raise UsageError(
            f"{len(values_Y)} sentences make a table of {len(values_Y) ** 2} pairs",
            where="pairs",
            remedy=f"use a language of at most {LARGEST_TABLE} sentences",
        )


def _refuse_preferences(preferences_YY: Tensor) -> None:
    both_YY = preferences_YY + preferences_YY.mT
    if not torch.allclose(both_YY, torch.ones_like(both_YY)):
        remedy = "give one probability a pair, and ½ on the diagonal"
        raise UsageError(
            "P(i ≻ j) and P(j ≻ i) do not sum to 1", where="preferences", remedy=remedy
        )
