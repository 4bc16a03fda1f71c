"""Best-of-N: what is picked, and the curve of every n from one pool."""

from __future__ import annotations

import itertools
import math

import pytest

from truing.rollouts.best_of_n import best, curve


def by_subsets(proxy, gold, n):
    """Mean over every subset of size n of the gold of its best; ties share."""
    picked = []
    for subset in itertools.combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in subset)
        winners = [gold[i] for i in subset if proxy[i] == top]
        picked.append(sum(winners) / len(winners))
    return sum(picked) / len(picked)


POOLS = [[0.3, -1.0, 2.0, 0.5], [1.0, 1.0, 0.0, -3.0], [0.0, 0.0, 0.0, 0.0]]
GOLDS = [[1.0, 2.0, -4.0, 0.0], [5.0, -1.0, 0.0, 2.0], [1.0, 2.0, 3.0, 4.0]]


def test_every_n_is_the_mean_over_all_subsets_of_the_pool():
    found = curve(POOLS, GOLDS)
    assert list(found.sizes) == [1, 2, 3, 4]
    for prompt, (proxy, gold) in enumerate(zip(POOLS, GOLDS, strict=True)):
        for n in found.sizes:
            assert found.proxy_PK[prompt, n - 1].item() == pytest.approx(
                by_subsets(proxy, proxy, n)
            )
            assert found.gold_PK[prompt, n - 1].item() == pytest.approx(by_subsets(proxy, gold, n))


def test_the_proxy_never_falls_and_gold_may():
    found = curve(POOLS, GOLDS)
    assert (found.proxy_PK.diff() >= -1e-12).all()
    assert (found.gold_PK.diff() < 0).any()
    assert found.proxy_PK[:, -1].tolist() == pytest.approx([max(pool) for pool in POOLS])


def test_one_completion_is_the_sampler_itself():
    found = curve([[0.7], [-2.0]])
    assert found.proxy_PK.tolist() == [[0.7], [-2.0]]
    assert found.kl_PK.tolist() == [[0.0], [0.0]]
    assert found.gold_PK is None


def test_ties_cost_less_than_the_bound():
    found = curve(POOLS)
    bound = math.log(4) - 3 / 4
    assert found.kl_PK[:, -1].tolist() == pytest.approx([bound, found.kl_PK[1, -1].item(), 0.0])
    # two of four tie at the top: their level has mass 1 - (1/2)^4 for 1/2; below, two pieces
    rest = sum(_piece((k - 1) / 4, k / 4) for k in (1, 2))
    assert found.kl_PK[1, -1].item() == pytest.approx((15 / 16) * math.log(15 / 8) + rest, abs=1e-4)


def _piece(low, high, cells=20_000):
    """∫ 4u³ log(4u³) du by the midpoint rule."""
    width = (high - low) / cells
    points = [low + width * (i + 0.5) for i in range(cells)]
    return sum(4 * u**3 * math.log(4 * u**3) * width for u in points)


def test_a_prompt_with_a_failed_score_is_in_no_point_of_the_curve():
    holed = [POOLS[0], [None, 9.0, 9.0, 9.0], POOLS[2]]
    found = curve(holed)
    assert found.left_out == 1
    assert found.proxy_PK.tolist() == curve([POOLS[0], POOLS[2]]).proxy_PK.tolist()
    gold_holed = [GOLDS[0], GOLDS[1], [None, 1.0, 1.0, 1.0]]
    assert curve(POOLS, gold_holed).left_out == 1
    assert curve([[None, 1.0]]) is None


def test_what_is_picked():
    assert best([0.0, 3.0, 3.0, -1.0]) == 1
    assert best([None, -2.0, None, -5.0]) == 1
    assert best([None, -1.0, 0.0]) == 2
    assert best([None, None]) is None
