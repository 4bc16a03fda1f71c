"""Best-of-n from one pool: unbiased over every pool, whatever the order of ties (O40)."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from sheet_language import GOLD, LANGUAGE, REFERENCE, REWARDS, TIED_REWARDS, best_of_n_by_drawing

from truing import exact
from truing.errors import UsageError

PROBS = LANGUAGE.sentence_logps(REFERENCE).exp().tolist()
POOLS = [list(pool) for pool in itertools.product(range(15), repeat=3)]


def plug_in(proxy, gold):
    """Best of 2 drawn from the pool with replacement: what one would write first."""
    size, order = len(proxy), proxy.argsort()
    k = torch.arange(1, size + 1).double()
    return (((k / size) ** 2 - ((k - 1) / size) ** 2) * gold[order]).sum().item()


@pytest.mark.parametrize("proxy", [REWARDS, TIED_REWARDS], ids=["distinct", "ties"])
def test_o40_the_estimate_is_unbiased_over_all_pools(proxy):
    mean = torch.zeros(3, dtype=torch.float64)
    naive = 0.0
    for pool in POOLS:
        chance = math.prod(PROBS[i] for i in pool)
        mean += chance * exact.best_of_n_estimates(proxy[pool], GOLD[pool], [1, 2, 3])
        naive += chance * plug_in(proxy[pool], GOLD[pool])
    for n in (1, 2, 3):
        law = best_of_n_by_drawing(PROBS, proxy.tolist(), n)
        truth = sum(p * g for p, g in zip(law, GOLD.tolist(), strict=True))
        assert mean[n - 1].item() == pytest.approx(truth, abs=1e-12)
        if n == 2:
            assert abs(naive - truth) > 1e-2


@pytest.mark.parametrize("levels", [4, 9], ids=["ties", "distinct"])
def test_o40_it_is_the_mean_over_all_subsets_of_the_pool(levels):
    torch.manual_seed(3)
    proxy, gold = torch.randperm(9) % levels, torch.randn(9, dtype=torch.float64)
    for n, estimate in enumerate(exact.best_of_n_estimates(proxy, gold, range(1, 10)), start=1):
        picked = []
        for subset in itertools.combinations(range(9), n):
            top = max(proxy[i] for i in subset)
            best = [gold[i].item() for i in subset if proxy[i] == top]
            picked.append(sum(best) / len(best))
        assert estimate.item() == pytest.approx(sum(picked) / len(picked))


def test_o40_the_order_of_ties_does_not_matter():
    torch.manual_seed(5)
    proxy, gold = torch.randint(0, 5, (40,)).double(), torch.randn(40).double()
    sizes = [1, 2, 7, 40]
    estimate = exact.best_of_n_estimates(proxy, gold, sizes)
    first_wins = []
    for _ in range(5):
        order = torch.randperm(40)
        again = exact.best_of_n_estimates(proxy[order], gold[order], sizes)
        torch.testing.assert_close(again, estimate, rtol=0, atol=1e-12)
        ranked = gold[order][proxy[order].argsort(stable=True)]
        first_wins.append((exact.order_weights(40, 7) @ ranked).item())
    assert max(first_wins) - min(first_wins) > 1e-3


def test_the_proxys_own_curve_rises_from_its_mean_to_its_maximum():
    proxy = REWARDS.repeat(4)
    curve = exact.best_of_n_estimates(proxy, proxy, range(1, 61))
    assert curve[0].item() == pytest.approx(proxy.mean().item())
    assert curve[-1].item() == pytest.approx(proxy.max().item())
    assert (curve.diff() >= -1e-12).all()


@pytest.mark.parametrize(("pool", "n"), [(1, 1), (6, 1), (6, 4), (6, 6), (40, 17)])
def test_weights_are_ratios_of_binomials(pool, n):
    expected = [math.comb(k - 1, n - 1) / math.comb(pool, n) for k in range(1, pool + 1)]
    assert exact.order_weights(pool, n).tolist() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("n", [1, 3, 500, 60_000])
def test_weights_hold_for_a_hundred_thousand_samples(n):
    pool = 100_000
    weights = exact.order_weights(pool, n)
    assert weights.sum().item() == pytest.approx(1, abs=1e-11)
    # integers of this size divide exactly
    for k in (pool, pool - 1, pool - 200):
        truth = Fraction(math.comb(k - 1, n - 1), math.comb(pool, n))
        assert weights[k - 1].item() == pytest.approx(float(truth), rel=1e-10)


def test_pools_that_cannot_answer_are_refused():
    scores = torch.tensor([0.1, 0.2, 0.3])
    for n in (0, 4):
        with pytest.raises(UsageError, match=f"best of {n} from a pool of 3"):
            exact.best_of_n_estimates(scores, scores, [n])
    for proxy, gold in ((scores, scores[:2]), (scores, scores / 0), (scores * torch.nan, scores)):
        with pytest.raises(UsageError, match="finite"):
            exact.best_of_n_estimates(proxy, gold, [1])


def kl_by_integral(proxy, n, cells=200_000):
    """∫ over the pool's quantiles of density · log density, in plain floats; ties in one piece."""
    pool, total = len(proxy), 0.0
    for level in sorted(set(proxy)):
        low = sum(r < level for r in proxy) / pool
        high = sum(r <= level for r in proxy) / pool
        pieces = 1 if proxy.count(level) > 1 else cells // pool
        for i in range(pieces):
            a = low + (high - low) * i / pieces
            b = low + (high - low) * (i + 1) / pieces
            mass = b**n - a**n
            total += mass * math.log(mass / (b - a)) if mass > 0 else 0.0
    return total


@pytest.mark.parametrize("levels", [3, 6, 40], ids=["many ties", "some", "none"])
@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_the_kl_of_a_pool_is_an_integral_over_its_quantiles(levels, n):
    proxy = ((torch.arange(8) * 7 + 3) % 8 % levels).tolist()
    seen = exact.best_of_n_kl_estimates(torch.tensor(proxy), [n]).item()
    assert seen == pytest.approx(kl_by_integral(proxy, n), abs=2e-4)


@pytest.mark.parametrize("pool", [1, 7, 64])
def test_without_ties_the_kl_of_a_pool_is_the_bound(pool):
    torch.manual_seed(0)
    seen = exact.best_of_n_kl_estimates(torch.randperm(pool), range(1, pool + 1))
    bounds = [exact.kl_bound(n) for n in range(1, pool + 1)]
    assert seen.tolist() == pytest.approx(bounds, abs=1e-12)


def test_where_all_tie_the_best_of_n_is_the_sampler():
    assert exact.best_of_n_kl_estimates(torch.zeros(9), range(1, 10)).tolist() == [0.0] * 9


@pytest.mark.parametrize("rewards", [REWARDS, TIED_REWARDS], ids=["distinct", "ties"])
def test_the_kl_of_a_large_pool_is_the_exact_one(rewards):
    """Sentences of a small language are drawn again and again: far below the bound."""
    torch.manual_seed(1)
    law = LANGUAGE.sentence_logps(REFERENCE)
    pool = rewards[torch.multinomial(law.exp(), 20_000, replacement=True)]
    for n, seen in zip((2, 8, 64), exact.best_of_n_kl_estimates(pool, (2, 8, 64)), strict=True):
        truth = exact.best_of_n_kl(law, rewards, n).item()
        assert seen.item() == pytest.approx(truth, abs=0.02)
        assert seen.item() < exact.kl_bound(n)
    assert seen.item() < exact.kl_bound(64) - 0.1


def test_pools_without_a_kl_are_refused():
    scores = torch.tensor([0.1, 0.2, 0.3])
    for n in (0, 4):
        with pytest.raises(UsageError, match=f"best of {n} from a pool of 3"):
            exact.best_of_n_kl_estimates(scores, [n])
    with pytest.raises(UsageError, match="finite"):
        exact.best_of_n_kl_estimates(scores / 0, [1])
