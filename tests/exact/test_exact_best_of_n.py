"""Best-of-n's law against every draw: O37-O39, O41, O42."""

import itertools
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
    TIED_REWARDS,
    best_of_n_by_drawing,
    close,
)

from truing import exact
from truing.errors import UsageError

REF, PI = LANGUAGE.sentence_logps(REFERENCE), LANGUAGE.sentence_logps(POLICY)
STAR = exact.optimal_policy(REF, REWARDS, BETA)
PROBS = REF.exp().tolist()
BOTH = pytest.mark.parametrize("rewards", [REWARDS, TIED_REWARDS], ids=["distinct", "ties"])
SMALL_N = pytest.mark.parametrize("n", [1, 2, 3])


def at_most(rewards):
    return [sum(p for p, x in zip(PROBS, rewards, strict=True) if x <= y) for y in rewards]


@BOTH
@SMALL_N
def test_o37_the_law_is_what_drawing_gives(rewards, n):
    law = exact.best_of_n_logps(REF, rewards, n).exp()
    close(law, best_of_n_by_drawing(PROBS, rewards.tolist(), n), 1e-12)
    close(law.sum(), 1.0)


def test_o37_the_formula_without_ties_is_wrong_where_there_are_some():
    quantiles = torch.tensor(at_most(TIED_REWARDS.tolist()), dtype=torch.float64)
    for n in (2, 3):
        atomless = n * REF.exp() * quantiles ** (n - 1)
        assert (atomless - exact.best_of_n_logps(REF, TIED_REWARDS, n).exp()).abs().max() > 1e-2
        assert atomless.sum() - 1 > 1e-2


@BOTH
def test_quantiles_are_sums_over_what_is_no_better(rewards):
    close(exact.log_quantiles(REF, rewards).exp(), at_most(rewards.tolist()))


@BOTH
@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000, 100_000])
def test_o38_the_kl_is_below_both_bounds(rewards, n):
    law = exact.best_of_n_logps(REF, rewards, n)
    assert law.isfinite().all()
    divergence = sum(math.exp(a) * (a - b) for a, b in zip(law.tolist(), REF.tolist(), strict=True))
    close(exact.best_of_n_kl(REF, rewards, n), divergence)
    best = sum(p for p, x in zip(PROBS, rewards.tolist(), strict=True) if x == rewards.max())
    assert divergence <= exact.kl_bound(n) + 1e-12
    assert divergence <= -math.log(best) + 1e-12
    if n > 1:
        assert divergence < exact.kl_bound(n) - 1e-3  # a bound is no KL in a small language
    if n == 100_000:
        assert divergence == pytest.approx(-math.log(best))


def test_o38_the_bound_is_reached_as_atoms_vanish():
    gaps = []
    for length in (2, 3, 4, 5):
        size = len(exact.Language(6, length).sentences)
        even = torch.full((size,), -math.log(size), dtype=torch.float64)
        rewards = torch.arange(size).double()
        gaps.append(exact.kl_bound(4) - exact.best_of_n_kl(even, rewards, 4).item())
    assert all(0 < later < earlier / 4 for earlier, later in itertools.pairwise(gaps))
    assert gaps[-1] < 1e-3


@BOTH
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_o39_the_win_rate_is_at_most_n_of_n_plus_1(rewards, n):
    law = exact.best_of_n_logps(REF, rewards, n).exp().tolist()
    r = rewards.tolist()
    by_loop = sum(
        law[i] * PROBS[j] * ((r[i] > r[j]) + 0.5 * (r[i] == r[j]))
        for i in range(15)
        for j in range(15)
    )
    close(exact.best_of_n_win_rate(REF, rewards, n), by_loop)
    assert by_loop <= n / (n + 1) + 1e-12
    # counting a tie as a win would break the bound
    generous = sum(law[i] * PROBS[j] * (r[i] >= r[j]) for i in range(15) for j in range(15))
    assert generous > n / (n + 1)


def test_o41_only_the_order_of_rewards_counts():
    bent = (5 * REWARDS).exp() - 2
    close(exact.best_of_n_logps(REF, bent, 3), exact.best_of_n_logps(REF, REWARDS, 3))
    for target in (exact.vbon_objective, exact.vbon_lower_bound):
        close(target(PI, REF, bent, 3), target(PI, REF, REWARDS, 3))
    close(exact.bond_loss(PI, REF, bent, 3, 0.4), exact.bond_loss(PI, REF, REWARDS, 3, 0.4))
    # the optimum of the regularised objective does depend on their size
    assert exact.kl(exact.optimal_policy(REF, bent, BETA), STAR) > 0.1
    assert (exact.best_of_n_logps(REF, -REWARDS, 3) - STAR).abs().max() > 0.1


@BOTH
def test_o42_vbon_is_the_distance_to_best_of_n_and_above_its_bound(rewards):
    n, best = 3, exact.best_of_n_logps(REF, rewards, 3)
    quantiles = at_most(rewards.tolist())
    strictly = [
        sum(p for p, x in zip(PROBS, rewards.tolist(), strict=True) if x < y)
        for y in rewards.tolist()
    ]
    for logps in (PI, STAR, LANGUAGE.sentence_logps(OTHER), best):
        value, p = exact.vbon_objective(logps, REF, rewards, n), logps.exp()
        entropy = -(p * logps).sum()
        close(value, (p * best).sum() + entropy)
        bound = exact.vbon_lower_bound(logps, REF, rewards, n)
        slack = sum(
            q * math.log(sum((below / upto) ** i for i in range(n)))
            for q, below, upto in zip(p.tolist(), strictly, quantiles, strict=True)
        )
        close(value - bound, slack)
        assert 0 <= slack <= math.log(n)
    close(exact.vbon_objective(best, REF, rewards, n), 0.0)
    assert exact.vbon_objective(PI, REF, rewards, n) < -0.1
    # the bound has its maximum elsewhere, and there the objective is not 0
    tilt = (REF + (n - 1) * torch.tensor(quantiles, dtype=torch.float64).log()).log_softmax(0)
    assert exact.vbon_lower_bound(tilt, REF, rewards, n) > exact.vbon_lower_bound(
        best, REF, rewards, n
    )
    assert exact.vbon_objective(tilt, REF, rewards, n) < -1e-3


def test_bond_weighs_both_directions_and_ends_at_best_of_n():
    best = best_of_n_by_drawing(PROBS, REWARDS.tolist(), 2)
    p = PI.exp().tolist()
    forward = sum(a * math.log(a / b) for a, b in zip(best, p, strict=True))
    backward = sum(b * math.log(b / a) for a, b in zip(best, p, strict=True))
    assert abs(forward - backward) > 1e-2
    for share in (0.0, 0.3, 1.0):
        close(exact.bond_loss(PI, REF, REWARDS, 2, share), (1 - share) * forward + share * backward)
    there = exact.best_of_n_logps(REF, REWARDS, 2)
    close(exact.bond_loss(there, REF, REWARDS, 2, 0.3), 0.0)


def test_a_best_sentence_that_is_almost_never_drawn_keeps_its_law():
    for rare in (-30.0, -700.0, -2000.0):
        logps = torch.tensor([math.log(0.4), math.log(0.6), rare], dtype=torch.float64)
        law = exact.best_of_n_logps(logps, torch.tensor([0.0, 1.0, 2.0]).double(), 4)
        # n chances, each of them tiny
        close(law, [4 * math.log(0.4), math.log(1 - 0.4**4), rare + math.log(4)])


@pytest.mark.parametrize("seed", range(10))
def test_where_everything_ties_the_best_is_any(seed):
    torch.manual_seed(seed)
    logps = LANGUAGE.sentence_logps(torch.randn(7, 3, dtype=torch.float64))
    for n in (1, 2, 1000):  # the mass of all ties may round to more than one
        close(exact.best_of_n_logps(logps, torch.full((15,), 0.3), n), logps)


@pytest.mark.parametrize("n", [0, -1])
def test_best_of_nothing_is_refused(n):
    for ask in (exact.best_of_n_logps, exact.best_of_n_kl, exact.best_of_n_win_rate):
        with pytest.raises(UsageError, match="nothing"):
            ask(REF, REWARDS, n)
    for ask in (exact.vbon_objective, exact.vbon_lower_bound):
        with pytest.raises(UsageError, match="nothing"):
            ask(PI, REF, REWARDS, n)
    with pytest.raises(UsageError, match="nothing"):
        exact.kl_bound(n)
