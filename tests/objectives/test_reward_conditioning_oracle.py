"""What becomes of a score on its way to an advantage, in the documented order (sheet 1.3).

1 normalise (rollouts/normalize.py)   2 missing-EOS penalty   3 clip to ±c
4 the KL per token, the score on the last real token   5 whiten rewards, keeping their mean
"""

from __future__ import annotations

import statistics

import pytest
import torch
from flat_batches import make_batch
from pydantic import ValidationError

from truing.batch import combine
from truing.rollouts.credit.gae import GAE
from truing.rollouts.credit.group import GroupCredit
from truing.rollouts.normalize import ScoreNormalizer

LENGTHS = [2, 1, 3, 1]
DRIFT = [[0.4, -0.1], [0.7], [-0.3, 0.2, 0.6], [0.1]]
SCORES = [9.0, -1.0, 2.5, -6.0]
FINISHED = [False, True, True, False]
PENALTY, CLIP, BETA = 1.5, 4.0, 0.3


def rollout(scores=SCORES, cut=None, **columns):
    """The completions as one batch, or as two."""

    def part(where):
        drift = [k for row in DRIFT[where] for k in row]
        return make_batch(
            LENGTHS[where],
            [i // 2 for i in range(len(LENGTHS[where]))],
            sampled_logps_N=[k - 1 for k in drift],
            reference_logps_N=[-1.0] * len(drift),
            values_N=[0.0] * len(drift),
            scores_C=scores[where],
            finished_C=FINISHED[where],
            **columns,
        )

    return [part(slice(None))] if cut is None else [part(slice(cut)), part(slice(cut, None))]


def shaped(scores=SCORES, penalty=PENALTY, clip=CLIP):
    """Steps 2 and 3."""
    less = [s - (0 if done else penalty) for s, done in zip(scores, FINISHED, strict=True)]
    return [max(-clip, min(clip, s)) for s in less]


def rewards(scores, beta=BETA):
    """Step 4, one row a completion."""
    rows = [[-beta * k for k in row] for row in DRIFT]
    for row, score in zip(rows, scores, strict=True):
        row[-1] += score
    return rows


def flat(rows):
    return [x for row in rows for x in row]


def to_go(rows):
    """What is still to come from each token on: γ = λ = 1 with values of 0."""
    return [[sum(row[t:]) for t in range(len(row))] for row in rows]


def credited(batches, **knobs):
    """Raw advantages; with values of 0 they are the returns."""
    fixed = {"kl_coef": BETA, "lam": 1.0, "whiten_advantages": False}
    seen, metrics = GAE(**fixed | knobs)(batches)
    return torch.cat([b["advantages_N"] for b in seen]).tolist(), combine([metrics])


def near(expected):
    return pytest.approx(expected, abs=1e-7)


def test_the_penalty_comes_before_the_clip():
    seen, metrics = credited(rollout(), missing_eos_penalty=PENALTY, score_clip=CLIP)
    assert shaped() == [4.0, -1.0, 2.5, -4.0]  # 9 − 1.5 is cut to 4, not 4 − 1.5
    assert seen == near(flat(to_go(rewards(shaped()))))
    spent = BETA * sum(flat(DRIFT)) / 4
    assert metrics["objective/rlhf_reward"] == pytest.approx(sum(shaped()) / 4 - spent, abs=1e-6)


def test_the_kl_is_not_clipped():
    """The clip bounds what the reward says, not what drifting costs."""
    seen, _ = credited(rollout([0.0] * 4), score_clip=0.01, kl_coef=10.0)
    assert seen == near(flat(to_go(rewards([0.0, 0.0, 0.0, 0.0], beta=10.0))))


@pytest.mark.parametrize("cut", [None, 1, 2, 3])
def test_whitening_gives_the_whole_rollouts_rewards_deviation_1_and_leaves_their_mean(cut):
    plain = flat(rewards(shaped()))
    mean, variance = statistics.fmean(plain), statistics.variance(plain)
    white = [(x - mean) / (variance + 1e-8) ** 0.5 + mean for x in plain]
    assert statistics.fmean(white) == pytest.approx(mean)
    assert statistics.stdev(white) == pytest.approx(1)
    rows, left = [], list(white)
    for length in LENGTHS:
        rows.append(left[:length])
        left = left[length:]
    knobs = {"missing_eos_penalty": PENALTY, "score_clip": CLIP, "whiten_rewards": True}
    assert credited(rollout(cut=cut), **knobs)[0] == near(flat(to_go(rows)))


def test_whitening_takes_the_rewards_size_away():
    """Scores a hundred times as large teach as much; without whitening a hundred times as much."""
    centred = [9.0, -1.0, 2.5, -10.5]  # the mean stays, and is not scaled
    large = [100 * s for s in centred]
    alike = [credited(rollout(s), whiten_rewards=True, kl_coef=0.0)[0] for s in (centred, large)]
    assert alike[1] == near(alike[0])
    grown = [credited(rollout(s), kl_coef=0.0)[0] for s in (centred, large)]
    assert grown[1] == near([100 * x for x in grown[0]])


def test_advantages_are_whitened_after_the_returns_are_taken():
    knobs = {"kl_coef": BETA, "lam": 1.0, "score_clip": CLIP}
    (white,), _ = GAE(**knobs)(rollout())
    expected = flat(to_go(rewards([max(-CLIP, min(CLIP, s)) for s in SCORES])))
    assert white["returns_N"].tolist() == near(expected)
    mean, deviation = statistics.fmean(expected), statistics.stdev(expected)
    assert white["advantages_N"].tolist() == near([(x - mean) / deviation for x in expected])


def test_groups_are_compared_after_the_clip():
    """Appendix A: clip before the baseline, so that one wild score cannot shift the others."""
    rule = GroupCredit(
        baseline="leave_one_out",
        scale_rewards="none",
        missing_eos_penalty=PENALTY,
        score_clip=CLIP,
    )
    seen, _ = rule(rollout())
    s = shaped()
    expected = [s[0] - s[1], s[1] - s[0], s[2] - s[3], s[3] - s[2]]
    assert seen[0]["advantages_N"][seen[0].last_C].tolist() == near(expected)


def test_the_overlong_punishment_is_not_clipped_away():
    rule = GroupCredit(
        baseline="none", scale_rewards="none", score_clip=1.0, overlong_cache=2,
        max_completion_length=3,
    )  # fmt: skip
    seen, _ = rule(rollout())
    # clipped to ±1 first; then a length of 1, 2, 3 of 3 with a cache of 2 costs 0, ½, 1
    expected = [1.0 - 0.5, -1.0, 1.0 - 1.0, -1.0]
    assert seen[0]["advantages_N"][seen[0].last_C].tolist() == near(expected)


@pytest.mark.parametrize("rule", [GAE, GroupCredit])
def test_a_smaller_clip_bounds_more(rule):
    fixed = {"kl_coef": 0.0}
    fixed |= {"whiten_advantages": False, "lam": 1.0} if rule is GAE else {}
    fixed |= {"baseline": "none", "scale_rewards": "none"} if rule is GroupCredit else {}
    largest = []
    for clip in (None, 5.0, 1.0):
        seen, _ = rule(**fixed, score_clip=clip)(rollout())
        largest.append(seen[0]["advantages_N"].abs().max().item())
    assert largest == near([9.0, 5.0, 1.0])


def test_normalisation_comes_first():
    """Penalty and clip are in deviations, not in the reward's own unit."""
    scores_C, normalize = torch.tensor(SCORES, dtype=torch.float64), ScoreNormalizer("reference")
    normalize.fit(scores_C)
    mean, deviation = statistics.fmean(SCORES), statistics.stdev(SCORES)
    scaled = [(s - mean) / deviation for s in SCORES]
    assert normalize.apply(scores_C).tolist() == near(scaled)
    seen, _ = credited(rollout(scaled), missing_eos_penalty=PENALTY, score_clip=1.0)
    assert seen == near(flat(to_go(rewards(shaped(scaled, clip=1.0)))))


@pytest.mark.parametrize("rule", [GAE, GroupCredit])
def test_defaults_are_off_and_a_clip_must_be_positive(rule):
    assert rule().score_clip is None
    assert GAE().whiten_rewards is False
    for nonsense in (0, -1):
        with pytest.raises(ValidationError):
            rule(score_clip=nonsense)
