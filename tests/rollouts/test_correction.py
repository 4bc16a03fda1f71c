"""Importance weights of a sampler that is not the trainer, in plain Python; what they repair."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from test_collect import collector

from objectives.flat_batches import make_batch
from small_groups import random_groups
from truing.groups import TokenGroup
from truing.rollouts.correction import importance_weights
from truing.rollouts.credit.group import GroupCredit

TRAINER = [[-1.0, -2.0], [-0.5], [-3.0, -0.1, -1.0]]
SAMPLER = [[-1.5, -1.9], [-2.5], [-1.0, -0.1, -1.3]]
LENGTHS = [2, 1, 3]
CAP = 2.0


def flat(rows):
    return [x for row in rows for x in row]


def weights(kind, cap=CAP, sampler=SAMPLER):
    batch = make_batch(LENGTHS, sampled_logps_N=flat(TRAINER), sampler_logps_N=flat(sampler))
    return importance_weights(batch, kind, cap).tolist()


def ratios(level):
    """trainer / sampler of each token, or of the completion it stands in."""
    rows = [
        [math.exp(a - b) for a, b in zip(*rows, strict=True)]
        for rows in zip(TRAINER, SAMPLER, strict=True)
    ]
    if level == "sequence":
        rows = [[math.prod(row)] * len(row) for row in rows]
    return flat(rows)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("cap", [1.3, CAP, 5.0])
def test_truncation_cuts_at_the_cap(level, cap):
    expected = [min(w, cap) for w in ratios(level)]
    assert weights(f"{level}_truncate", cap) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("cap", [1.3, CAP, 5.0])
def test_a_mask_silences_both_sides_and_leaves_the_rest_as_it_is(level, cap):
    expected = [w if 1 / cap <= w <= cap else 0.0 for w in ratios(level)]
    assert weights(f"{level}_mask", cap) == pytest.approx(expected, rel=1e-9)


def test_the_cases_hold_every_branch():
    for level in ("token", "sequence"):
        found = ratios(level)
        assert min(found) < 1 / CAP
        assert max(found) > CAP
        assert any(1 / CAP < w < CAP for w in found)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_larger_cap_corrects_more(level):
    for kind in ("truncate", "mask"):
        sums = [sum(weights(f"{level}_{kind}", cap)) for cap in (1.1, 2.0, 20.0)]
        assert sums == sorted(sums)
        assert sums[0] < sums[-1]


def test_a_sampler_that_agrees_gets_ones_and_an_absurd_one_stays_finite():
    agreeing = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    for kind in agreeing:
        assert weights(kind, sampler=TRAINER) == [1.0] * 6
    assert weights("token_truncate", sampler=[[-1e4] * n for n in LENGTHS]) == [CAP] * 6


def test_the_weighted_mean_is_the_trainers():
    """Σ sampler · w · f = Σ trainer · f, over every answer of one token, where no weight is cut."""
    trainer, sampler = [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]
    value = [3.0, -1.0, 0.25]
    batch = make_batch(
        [1, 1, 1],
        sampled_logps_N=[math.log(p) for p in trainer],
        sampler_logps_N=[math.log(p) for p in sampler],
    )
    found = importance_weights(batch, "sequence_truncate", 10.0).tolist()
    ours = math.fsum(q * w * f for q, w, f in zip(sampler, found, value, strict=True))
    assert ours == pytest.approx(math.fsum(p * f for p, f in zip(trainer, value, strict=True)))


PROMPTS = [TokenGroup(g.prompt_ids) for g in random_groups(1, 5, 0)]
PLAIN = GroupCredit(baseline="none", scale_rewards="none")


def rollout(kind, cap=3.0, gap=0.2):
    """The sampler says −1 of every token, the trainer `gap` more."""
    made = collector(
        credit=PLAIN,
        measure=lambda b: (torch.full((b.size_N,), gap - 1), torch.zeros(b.size_N)),
        importance_correction=kind,
        importance_cap=cap,
    )
    found = made.collect(PROMPTS, 3)
    flat = [b for part in found.minibatches for b in part]
    factors = [b["advantages_N"] / b["scores_C"][b.completion_N] for b in flat]
    lengths = [b.lengths_C[b.completion_N] for b in flat]
    return found.metrics, torch.cat(factors).tolist(), torch.cat(lengths).tolist()


def test_advantages_are_multiplied_and_nothing_else_is():
    _, factors, lengths = rollout("sequence_truncate")
    assert max(lengths) > 5  # some weights are cut
    assert factors == pytest.approx([min(math.exp(0.2 * n), 3.0) for n in lengths], rel=1e-5)
    _, factors, _ = rollout("token_truncate")
    assert factors == pytest.approx([math.exp(0.2)] * len(lengths), rel=1e-5)
    metrics, factors, _ = rollout("none")
    assert factors == [1.0] * len(lengths)
    assert not [name for name in metrics if name.startswith("sampling/importance")]


def test_what_the_weights_are_is_measured():
    metrics, factors, lengths = rollout("sequence_mask")
    expected = [w if (w := math.exp(0.2 * n)) <= 3 else 0.0 for n in lengths]
    assert factors == pytest.approx(expected, rel=1e-5)
    assert metrics["sampling/importance_mean"] == pytest.approx(statistics.fmean(expected))
    assert metrics["sampling/importance_silenced"] == pytest.approx(
        expected.count(0.0) / len(expected)
    )
    assert 0 < expected.count(0.0) < len(expected)
    assert metrics["sampling/logp_difference_mean"] == pytest.approx(0.2, rel=1e-5)


def test_the_cap_reaches_the_rollout():
    loose, tight = (rollout("sequence_truncate", cap)[1] for cap in (3.0, 1.5))
    assert max(tight) == pytest.approx(1.5, rel=1e-6)
    assert max(loose) == pytest.approx(3.0, rel=1e-6)
