"""Credit by groups, against loops in floats and other libraries' vectors (sheet 1.4-1.5, 5.2)."""

import math
import statistics

import pytest
import torch
from points import Point, judge
from pydantic import ValidationError
from scalar import mean

from truing import objectives
from truing.batch import combine
from truing.rollouts.credit.group import GroupCredit

LENGTHS = [2, 1, 3, 2, 1, 4]
GROUPS = [0, 1, 0, 1, 0, 1]
SCORES = [3.0, -1.0, 0.5, 2.0, 1.0, 4.0]
DRIFT = [[0.4, -0.1], [0.7], [-0.3, 0.2, 0.6], [0.1, 0.9], [-0.5], [0.3, 0.3, -0.8, 0.2]]
FINISHED = [1, 0, 1, 1, 0, 1]


def rollout(scores=SCORES, groups=GROUPS, drift=None, lengths=None, **columns):
    lengths = lengths or ([len(row) for row in drift] if drift else [1] * len(scores))
    drift = drift or [[0.0] * n for n in lengths]
    reference = [[-1.0 - 0.1 * t for t in range(len(row))] for row in drift]
    sampled = [
        [q + d for q, d in zip(*rows, strict=True)] for rows in zip(reference, drift, strict=True)
    ]
    given = {
        "sampled_logps_N": sampled,
        "reference_logps_N": reference,
        "scores_C": scores,
        "finished_C": [1] * len(scores),
    }
    return Point(sampled, given | columns, list(groups))


FULL = rollout(drift=DRIFT, finished_C=FINISHED)


def advantages(point, *more, **fields):
    batches, _ = GroupCredit(**fields)([p.batch() for p in (point, *more)])
    found = torch.cat([b["advantages_N"] for b in batches]).tolist()
    rows = []
    for row in [r for p in (point, *more) for r in p.policy]:
        rows.append(found[: len(row)])
        found = found[len(row) :]
    assert not found
    return rows


def per_completion(point, *more, **fields):
    rows = advantages(point, *more, **fields)
    assert all(max(row) == min(row) for row in rows)
    return [row[0] for row in rows]


PLAIN = {"scale_rewards": "none"}


def near(expected, tolerance=1e-6):
    return pytest.approx(expected, abs=tolerance)


def test_leave_one_out_vectors():
    point = rollout([6, 3, 9, 12, 1], [0, 0, 1, 1, 2])
    found = per_completion(point, baseline="leave_one_out", **PLAIN)
    assert found == near([3, -3, -3, 3, 0])
    four = rollout([1, 0, 0, 1], [0] * 4)
    two_thirds = [2 / 3, -2 / 3, -2 / 3, 2 / 3]
    assert per_completion(four, baseline="leave_one_out", **PLAIN) == near(two_thirds)
    three = rollout([1, 2, 3], [0] * 3)
    baselines = [2.5, 2, 1.5]
    expected = [s - b for s, b in zip([1, 2, 3], baselines, strict=True)]
    assert per_completion(three, baseline="leave_one_out", **PLAIN) == near(expected)


def test_group_vectors():
    four = rollout([1, 0, 0, 1], [0] * 4)
    root = math.sqrt(3) / 2
    found = per_completion(four, scale_epsilon=1e-12)
    assert found == near([root, -root, -root, root])
    assert per_completion(four) == near(
        [0.5 / (1 / math.sqrt(3) + 1e-4) * s for s in (1, -1, -1, 1)]
    )
    pairs = rollout([6, 3, 9, 12], [0, 0, 1, 1])
    assert per_completion(pairs, **PLAIN) == near([1.5, -1.5, -1.5, 1.5])


def test_two_completions_differ_by_their_order_alone():
    pairs = rollout([6, 3, -9, 12, 5], [0, 0, 1, 1, 2])
    root = math.sqrt(0.5)
    found = per_completion(pairs, scale_epsilon=1e-12)
    assert found == near([root, -root, -root, root, 0])


def test_metrics_count_every_group_once():
    first = rollout([6, 3, 1, 1, 1], [0, 0, 1, 1, 1], finished_C=[1, 1, 0, 1, 1])
    second = rollout([4, 0, 1, 7], [0, 0, 0, 1], drift=[[0.2], [0.1, -0.4], [0.5], [1.0]])
    _, found = GroupCredit(kl_coef=0.5)([first.batch(), second.batch()])
    metrics = combine([found])
    spread = [statistics.stdev([6, 3]), 0.0, statistics.stdev([4, 0, 1])]  # not the single one
    assert metrics["reward_std"] == near(mean(spread))
    assert metrics["frac_reward_zero_std"] == near(1 / 3)
    assert metrics["groups/singletons"] == 1
    drifts = [0.2, -0.3, 0.5, 1.0]
    assert metrics["objective/kl"] == near(sum(drifts) / 9)
    assert metrics["objective/non_score_reward"] == near(-0.5 * sum(drifts) / 9)
    assert metrics["objective/scores"] == near(24 / 9)
    assert metrics["completions/clipped_ratio"] == near(1 / 9)


def reference_baseline(kind, returns, greedy=None):
    if kind == "none":
        return [0.0] * len(returns)
    if kind == "batch":
        return [mean(returns)] * len(returns)
    if kind == "greedy":
        return greedy
    found = []
    for i, group in enumerate(GROUPS):
        others = [r for j, r in enumerate(returns) if GROUPS[j] == group]
        if kind == "leave_one_out":
            others.remove(returns[i])
        found.append(mean(others))
    return found


@pytest.mark.parametrize("placement", ["return", "token"])
@pytest.mark.parametrize("baseline", ["none", "batch", "group", "leave_one_out", "greedy"])
@pytest.mark.parametrize("scale", ["none", "group", "batch"])
@pytest.mark.parametrize("penalty", [None, 0.75])
def test_every_rule_in_loops(placement, baseline, scale, penalty):
    kl_coef, greedy = 0.3, [0.5, 0.2, 0.5, 0.2, 0.5, 0.2]
    point = FULL.with_columns(baseline_C=greedy)
    scores = [s - (penalty or 0.0) * (1 - f) for s, f in zip(SCORES, FINISHED, strict=True)]
    if placement == "return":
        returns = [s - kl_coef * sum(row) for s, row in zip(scores, DRIFT, strict=True)]
    else:
        returns = scores
    base = reference_baseline(baseline, returns, greedy)
    raw = [r - b for r, b in zip(returns, base, strict=True)]
    if scale == "group":
        spread = {
            g: statistics.stdev(r for r, h in zip(returns, GROUPS, strict=True) if h == g)
            for g in (0, 1)
        }
        raw = [a / (spread[g] + 1e-4) for a, g in zip(raw, GROUPS, strict=True)]
    expected = [[a] * n for a, n in zip(raw, LENGTHS, strict=True)]
    if placement == "token":
        later = [[-kl_coef * sum(row[t:]) for t in range(len(row))] for row in DRIFT]
        expected = [
            [a + k for a, k in zip(*x, strict=True)] for x in zip(expected, later, strict=True)
        ]
    flat = [x for row in expected for x in row]
    if scale == "batch":
        centre, deviation = mean(flat), statistics.stdev(flat)
        flat = [(x - centre) / deviation for x in flat]
    found = advantages(
        point,
        baseline=baseline,
        scale_rewards=scale,
        kl_coef=kl_coef,
        kl_placement=placement,
        missing_eos_penalty=penalty,
    )
    assert [x for row in found for x in row] == near(flat, 1e-7)


def test_reinforce_pp_returns():
    point = rollout([0.0], [0], [[-1.0, -2.0, -3.0]])
    fields = {"baseline": "none", "kl_placement": "token", "kl_coef": 1.0}
    assert advantages(point, **fields, **PLAIN) == [near([6, 5, 3])]


@pytest.mark.parametrize("baseline", ["batch", "group", "leave_one_out"])
@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_a_rollout_in_two_batches_is_one_rollout(baseline, scale):
    first, second = rollout([1, 4, 2], [0, 0, 0]), rollout([3, -1], [0, 0])
    whole = rollout([1, 4, 2, 3, -1], [0, 0, 0, 1, 1])
    fields = {"baseline": baseline, "scale_rewards": scale}
    assert per_completion(first, second, **fields) == near(per_completion(whole, **fields), 1e-12)


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
@pytest.mark.parametrize("baseline", ["group", "leave_one_out"])
def test_an_undecided_group_and_a_single_one_teach_nothing(baseline, scale):
    fields = {"baseline": baseline, "scale_rewards": scale}
    equal = rollout([0.3, 0.3, 0.3], [0, 0, 0])
    assert per_completion(equal, **fields) == near([0, 0, 0], 1e-7)
    assert per_completion(rollout([5.0], [0]), **fields) == [0]
    point = equal.with_columns(advantages_N=[[a] for a in per_completion(equal, **fields)])
    _, gradient = judge(objectives.find("grpo")(beta=0.0), point)
    assert gradient == near([0, 0, 0], 1e-7)


@pytest.mark.parametrize("baseline", ["group", "leave_one_out"])
def test_a_constant_per_prompt_cancels_and_only_scaled_rewards_ignore_the_unit(baseline):
    shifted = [s + (7.0, -3.0)[g] for s, g in zip(SCORES, GROUPS, strict=True)]
    for scale in ("none", "group"):
        fields = {"baseline": baseline, "scale_rewards": scale, "scale_epsilon": 1e-9}
        here = per_completion(rollout(), **fields)
        assert per_completion(rollout(shifted), **fields) == near(here)
        tripled = per_completion(rollout([3 * s for s in SCORES]), **fields)
        factor = 1 if scale == "group" else 3
        assert tripled == near([factor * a for a in here])


def test_leave_one_out_is_the_centred_score_stretched():
    centred = per_completion(rollout(), baseline="group", **PLAIN)
    found = per_completion(rollout(), baseline="leave_one_out", **PLAIN)
    assert found == near([3 / 2 * a for a in centred])


@pytest.mark.parametrize(
    ("length", "punishment"), [(50, 0), (80, 0), (90, -0.5), (100, -1), (110, -1)]
)
def test_the_overlong_punishment(length, punishment):
    fields = {"baseline": "none", "overlong_cache": 20, "max_completion_length": 100}
    point = rollout([2.0], [0], lengths=[length])
    assert per_completion(point, **fields, **PLAIN) == near([2.0 + punishment])


def test_the_overlong_filter_drops_the_loss_but_not_the_baseline():
    point = rollout([1.0, 4.0, 7.0], [0, 0, 0], finished_C=[1, 0, 1])
    (batch,), _ = GroupCredit(overlong_filter=True, **PLAIN)([point.batch()])
    assert batch["advantages_N"].tolist() == near([-3, 3])
    assert batch.size_C == batch.size_N == 2
    assert batch["scores_C"].tolist() == [1, 7]


def test_defaults_and_ranges():
    assert GroupCredit() == GroupCredit(
        baseline="group",
        scale_rewards="group",
        scale_epsilon=1e-4,
        kl_coef=0.0,
        kl_placement="return",
        missing_eos_penalty=None,
        overlong_cache=None,
        overlong_filter=False,
    )
    assert GroupCredit(baseline="greedy").wants_greedy
    assert not GroupCredit().wants_greedy
    for nonsense in ({"baseline": "mean"}, {"kl_coef": -1}, {"overlong_cache": 0}, {"beta": 1}):
        with pytest.raises(ValidationError):
            GroupCredit(**nonsense)
