"""RLHF's objective, its optimum and what the optimum costs, as sums over all sentences.

    J(π) = E_π[r] − β KL(π‖ref)        π* = ref · exp(r/β) / Z        max J = β log Z

S contexts · V vocabulary · Y sentences · B points of a frontier

A law over sentences is `logps_Y`, nats, finite; leading axes are carried along. Only r/β decides
where π* lies: β is in units of reward per nat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from truing.errors import UsageError
from truing.exact.language import Language
from truing.ops import kl_k1


def expectation(logps_Y: Tensor, values_Y: Tensor) -> Tensor:
    """E_π[f] = Σ_y π(y) f(y). Scalar, unit of `values_Y`. Raises nothing. Source: definition."""
    return (logps_Y.exp() * values_Y).sum(-1)


def variance(logps_Y: Tensor, values_Y: Tensor) -> Tensor:
    """Var_π(f) = E_π[(f − E_π f)²] ≥ 0. Scalar. Raises nothing. Source: definition."""
    mean = expectation(logps_Y, values_Y)
    return expectation(logps_Y, (values_Y - mean[..., None]).square())


def kl(logps_Y: Tensor, reference_logps_Y: Tensor) -> Tensor:
    """KL(π‖ref) = Σ_y π(y) (log π(y) − log ref(y)) ≥ 0, per sentence.

    Scalar, nats. `kl(reference, policy)` is the forward one. Raises nothing. Source: definition.
    """
    return expectation(logps_Y, kl_k1(logps_Y, reference_logps_Y))


def rlhf_objective(
    logps_Y: Tensor, reference_logps_Y: Tensor, rewards_Y: Tensor, beta: float
) -> Tensor:
    """J(π) = E_π[r] − β KL(π‖ref) = β log Z − β KL(π‖π*).

    Scalar, unit of the reward; β ≥ 0. Raises nothing. Source: algorithm sheet, 0.1 and O1.
    """
    return expectation(logps_Y, rewards_Y) - beta * kl(logps_Y, reference_logps_Y)


def optimal_policy(reference_logps_Y: Tensor, rewards_Y: Tensor, beta: float | Tensor) -> Tensor:
    """log π*(y) = log ref(y) + r(y)/β − log Z, the only maximum of J.

    Shape [Y], nats; β > 0, or [B, 1] for several. Raises UsageError for another β.
    Source: Rafailov et al. 2023 (arXiv 2305.18290), eq. 4.
    """
    _refuse_beta(beta)
    return (reference_logps_Y + rewards_Y / beta).log_softmax(-1)


def log_partition(reference_logps_Y: Tensor, rewards_Y: Tensor, beta: float) -> Tensor:
    """log Z = log Σ_y ref(y) exp(r(y)/β); β log Z is the best J there is.

    Scalar, nats; β > 0. Raises UsageError for another β. Source: algorithm sheet, 0.1.
    """
    _refuse_beta(beta)
    return (reference_logps_Y + rewards_Y / beta).logsumexp(-1)


class Frontier(NamedTuple):
    """The most reward a policy can have at each distance from its reference; no method is above."""

    betas_B: Tensor
    """Reward per nat: the slope dE[r]/dKL of the frontier at the point."""
    kls_B: Tensor
    """KL(π*‖ref), nats."""
    rewards_B: Tensor
    """E_π*[r]."""


def frontier(reference_logps_Y: Tensor, rewards_Y: Tensor, betas: Sequence[float]) -> Frontier:
    """(KL(π*‖ref), E_π*[r]) for each β: rising and concave, as dE[r] = β dKL along it.

    Points in the order of `betas`, each > 0. Raises UsageError for another β.
    Source: algorithm sheet, O3 and 3.1.
    """
    betas_B = torch.tensor(list(betas), dtype=torch.float64)
    logps_BY = optimal_policy(reference_logps_Y, rewards_Y, betas_B[:, None])
    return Frontier(betas_B, kl(logps_BY, reference_logps_Y), expectation(logps_BY, rewards_Y))


def best_reward_at(reference_logps_Y: Tensor, rewards_Y: Tensor, divergence: float) -> float:
    """The frontier's height at a KL: no law with KL(π‖ref) ≤ `divergence` has a larger E[r].

        min over β > 0 of β (divergence + log Z(β)), the dual of max E_π[r] s.t. KL ≤ divergence

    Unit of the reward; `divergence` ≥ 0 nats. β is found by halving, where KL(π*) crosses
    `divergence`; as every β gives an upper bound, an inexact one errs upwards. Good to 1e-6 of the
    rewards' range. Raises nothing. Source: strong duality; algorithm sheet, O1 and O3.
    """
    spread = float(rewards_Y.max() - rewards_Y.min())
    if spread == 0:
        return float(rewards_Y.max())
    # a larger β/range than e^12 would lose log Z ~ range/β in its rounding
    low, high = math.log(spread) - 30, math.log(spread) + 12
    while high - low > 1e-10:
        middle = (low + high) / 2
        optimum_Y = optimal_policy(reference_logps_Y, rewards_Y, math.exp(middle))
        farther = float(kl(optimum_Y, reference_logps_Y)) > divergence
        low, high = (middle, high) if farther else (low, middle)
    beta = math.exp(high)
    return beta * (divergence + float(log_partition(reference_logps_Y, rewards_Y, beta)))


def small_kl_reward(reference_logps_Y: Tensor, rewards_Y: Tensor, divergence: float) -> Tensor:
    """E_ref[r] + √(2 Var_ref(r) KL): the frontier close to the reference, where it is a root.

    Scalar, unit of the reward; `divergence` ≥ 0 nats, right as it goes to 0.
    Raises nothing. Source: algorithm sheet, O3.
    """
    spread = variance(reference_logps_Y, rewards_Y)
    return expectation(reference_logps_Y, rewards_Y) + (2 * divergence * spread).sqrt()


def policy_gradient(
    language: Language, logits_SV: Tensor, reference_logps_Y: Tensor, rewards_Y: Tensor, beta: float
) -> Tensor:
    """∇J = E_π[(r − β log(π/ref)) ∇ log π], exactly, by autograd through the sum.

    Shape [S, V], unit of the reward. Raises what `Language.token_logps` does.
    Source: algorithm sheet, O4.
    """
    logits_SV = logits_SV.detach().requires_grad_()
    logps_Y = language.sentence_logps(logits_SV)
    value = rlhf_objective(logps_Y, reference_logps_Y, rewards_Y, beta)
    return torch.autograd.grad(value, logits_SV)[0]


def _refuse_beta(beta: float | Tensor) -> None:
    if not bool((torch.as_tensor(beta) > 0).all()):
        raise UsageError(
            f"beta is {beta}; without a price on KL there is no optimum with a density",
            where="optimal policy",
            remedy="give beta > 0",
        )
