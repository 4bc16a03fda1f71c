"""KL-regularised RL by enumeration: O1, O3, O4, and the frontier."""

import math

import pytest
import torch
from sheet_language import (
    BETA,
    LANGUAGE,
    OTHER,
    POLICY,
    REFERENCE,
    REWARDS,
    close,
    finite_differences,
    objective_by_hand,
)

from truing import exact
from truing.errors import UsageError

REF, PI = LANGUAGE.sentence_logps(REFERENCE), LANGUAGE.sentence_logps(POLICY)
STAR = exact.optimal_policy(REF, REWARDS, BETA)


def plain(logps):
    return logps.exp().tolist()


def test_sums_over_sentences_are_loops_over_sentences():
    p, q, r = plain(PI), plain(REF), REWARDS.tolist()
    mean = sum(a * x for a, x in zip(p, r, strict=True))
    assert exact.expectation(PI, REWARDS).item() == pytest.approx(mean)
    spread = sum(a * x * x for a, x in zip(p, r, strict=True)) - mean**2
    assert exact.variance(PI, REWARDS).item() == pytest.approx(spread)
    divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert exact.kl(PI, REF).item() == pytest.approx(divergence)
    by_hand = objective_by_hand(POLICY, REFERENCE, REWARDS, BETA)
    assert exact.rlhf_objective(PI, REF, REWARDS, BETA).item() == pytest.approx(by_hand)
    total = sum(b * math.exp(x / BETA) for b, x in zip(q, r, strict=True))
    assert exact.log_partition(REF, REWARDS, BETA).item() == pytest.approx(math.log(total))
    close(STAR.exp(), [b * math.exp(x / BETA) / total for b, x in zip(q, r, strict=True)])


def test_o1_the_objective_is_its_maximum_less_the_distance_to_the_optimum():
    best = BETA * exact.log_partition(REF, REWARDS, BETA)
    for logits in (POLICY, REFERENCE, OTHER):
        logps = LANGUAGE.sentence_logps(logits)
        value = objective_by_hand(logits, REFERENCE, REWARDS, BETA)
        close(value, best - BETA * exact.kl(logps, STAR))
        # the distance must be measured under π: the forward one does not fit
        assert abs(value - (best - BETA * exact.kl(STAR, logps))) > 1e-3
    close(exact.rlhf_objective(STAR, REF, REWARDS, BETA), best)


def test_o3_reward_and_kl_rise_with_the_variance_along_the_frontier():
    step = 1e-5
    warm, cold = 1 / (1 / BETA - step), 1 / (1 / BETA + step)
    _, kls, rewards = exact.frontier(REF, REWARDS, [warm, cold])
    p, r = plain(STAR), REWARDS.tolist()
    mean = sum(a * x for a, x in zip(p, r, strict=True))
    spread = sum(a * (x - mean) ** 2 for a, x in zip(p, r, strict=True))
    assert (rewards[1] - rewards[0]).item() / (2 * step) == pytest.approx(spread, abs=1e-6)
    assert (kls[1] - kls[0]).item() / (2 * step) == pytest.approx(spread / BETA, abs=1e-6)
    # the reference's own variance is another number
    assert abs(exact.variance(REF, REWARDS).item() - spread) > 1e-2


def test_o3_the_frontier_rises_is_concave_and_has_slope_beta():
    betas = [5.0, 2.0, 1.0, 0.5, 0.3, 0.2, 0.1]
    line = exact.frontier(REF, REWARDS, betas)
    assert line.betas_B.tolist() == betas
    assert (line.kls_B.diff() > 0).all()
    assert (line.rewards_B.diff() > 0).all()
    slopes = line.rewards_B.diff() / line.kls_B.diff()
    assert (slopes.diff() < 0).all()
    for slope, above, below in zip(slopes.tolist(), betas[:-1], betas[1:], strict=True):
        assert below < slope < above
    one_by_one = [exact.optimal_policy(REF, REWARDS, beta) for beta in betas]
    close(line.kls_B, [exact.kl(p, REF) for p in one_by_one])
    close(line.rewards_B, [exact.expectation(p, REWARDS) for p in one_by_one])


@pytest.mark.parametrize("seed", range(20))
def test_o3_no_policy_is_above_the_frontier(seed):
    torch.manual_seed(seed)
    logps = LANGUAGE.sentence_logps(2 * torch.randn(7, 3, dtype=torch.float64))
    line = exact.frontier(REF, REWARDS, [3 * 0.9**i for i in range(120)])
    divergence, reward = exact.kl(logps, REF), exact.expectation(logps, REWARDS)
    further = (line.kls_B >= divergence).nonzero()
    ceiling = line.rewards_B[further[0]] if len(further) else REWARDS.max()
    assert reward <= ceiling
    assert exact.expectation(STAR, REWARDS) > line.rewards_B[line.kls_B < exact.kl(STAR, REF)].max()


def test_o3_close_to_the_reference_the_frontier_is_a_square_root():
    line = exact.frontier(REF, REWARDS, [1e3, 1e2, 1.0])
    start = exact.expectation(REF, REWARDS)
    errors = [
        abs((exact.small_kl_reward(REF, REWARDS, divergence) - start) / (reward - start) - 1).item()
        for divergence, reward in zip(line.kls_B.tolist(), line.rewards_B, strict=True)
    ]
    assert errors[0] < 1e-4
    assert errors[1] / errors[0] == pytest.approx(10, rel=0.05)  # the next term is of order √KL
    assert errors[2] > 1e-2  # a law for small KL, and no further
    at_double = exact.small_kl_reward(REF, REWARDS, 0.02) - start
    close(at_double / (exact.small_kl_reward(REF, REWARDS, 0.01) - start), math.sqrt(2))


def test_the_gradient_is_the_slope_of_the_objective_by_finite_differences():
    exactly = exact.policy_gradient(LANGUAGE, POLICY, REF, REWARDS, BETA)
    slopes = finite_differences(
        lambda logits: objective_by_hand(logits, REFERENCE, REWARDS, BETA), POLICY
    )
    close(exactly, slopes, 1e-8)
    optimum = LANGUAGE.logits_of(STAR)
    close(exact.policy_gradient(LANGUAGE, optimum, REF, REWARDS, BETA), torch.zeros(7, 3))


def test_o4_reinforce_with_any_baseline_is_the_exact_gradient():
    scores = torch.autograd.functional.jacobian(LANGUAGE.sentence_logps, POLICY)
    truth = exact.policy_gradient(LANGUAGE, POLICY, REF, REWARDS, BETA)

    def reinforce(returns):
        return torch.einsum("y,y,ysv->sv", PI.exp(), returns, scores)

    regularised = REWARDS - BETA * (PI - REF)
    for baseline in (0.0, 7.0, -3.0):
        close(reinforce(regularised - baseline), truth)
    # a baseline that depends on the sentence, or a forgotten KL, is another gradient
    assert (reinforce(regularised - REWARDS / 2) - truth).norm() > 1e-2
    assert (reinforce(REWARDS) - truth).norm() > 1e-2


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_without_a_price_on_kl_there_is_no_optimum(beta):
    for ask in (exact.optimal_policy, exact.log_partition):
        with pytest.raises(UsageError, match="beta"):
            ask(REF, REWARDS, beta)
    with pytest.raises(UsageError, match="beta"):
        exact.frontier(REF, REWARDS, [1.0, beta])


def test_the_frontier_at_a_distance_is_the_one_of_its_beta():
    found = exact.frontier(REF, REWARDS, [0.05, 0.3, 1.0, 4.0])
    for divergence, reward in zip(found.kls_B.tolist(), found.rewards_B.tolist(), strict=True):
        assert exact.best_reward_at(REF, REWARDS, divergence) == pytest.approx(reward, abs=1e-6)


def test_no_law_is_above_the_frontier_and_its_ends_are_known():
    torch.manual_seed(0)
    for sharpness in (0.1, 1.0, 3.0, 10.0):
        for _ in range(20):
            law = (REF + sharpness * torch.randn(15).double()).log_softmax(-1)
            height = exact.best_reward_at(REF, REWARDS, exact.kl(law, REF).item())
            assert exact.expectation(law, REWARDS).item() <= height + 1e-9
    mean = exact.expectation(REF, REWARDS).item()
    assert exact.best_reward_at(REF, REWARDS, 0.0) == pytest.approx(mean, abs=1e-5)
    everything_on_the_best = -REF[REWARDS.argmax()].item()
    for divergence in (everything_on_the_best + 0.01, 50.0):
        height = exact.best_reward_at(REF, REWARDS, divergence)
        assert height == pytest.approx(REWARDS.max().item(), abs=1e-6)
    assert exact.best_reward_at(REF, torch.full((15,), 0.7).double(), 1.0) == pytest.approx(0.7)
