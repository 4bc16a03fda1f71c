"""A judge of pairs where a reward is expected: duels counted, undecided ones left out."""

from __future__ import annotations

import pytest

from small_groups import random_groups
from truing import rewards
from truing.errors import RolloutError, UsageError
from truing.groups import TokenCompletion, TokenGroup
from truing.rewards.base import score
from truing.rewards.judge import Judge
from truing.rollouts.scoring import score_groups


def longer(prompts, completions):
    """TRL's signature; equal lengths are undecided."""
    assert len(prompts) == len(completions)
    return [-1 if len(a) == len(b) else int(len(b) > len(a)) for a, b in completions]


def asked(judge, texts, groups):
    """The scores of completions with the prompts `p<group>`."""
    scores = score(judge, [f"p{g}" for g in groups], texts, {"group": groups})
    return scores.values, scores.faults


def test_the_winner_of_two_scores_one():
    assert asked(Judge(longer), ["aa", "a", "b", "bbb"], [0, 0, 1, 1]) == ([1, 0, 0, 1], {})


def test_of_several_each_meets_each():
    values, faults = asked(Judge(longer), ["aa", "a", "aaaa", "bb"], [0, 0, 0, 0])
    assert values == [0.5, 0.0, 1.0, 0.5]  # the two of equal length: one decided win, one loss
    assert faults == {}


def test_what_cannot_be_decided_is_unscored_and_counted():
    values, faults = asked(Judge(longer), ["a", "b", "ccc", "d", "eee"], [0, 0, 1, 2, 1 + 1])
    assert values == [None, None, None, 0.0, 1.0]
    assert faults == {"undecided": 2, "alone": 1}


def test_a_judge_that_prefers_a_place_decides_nothing_when_asked_both_ways():
    def first(prompts, completions):
        return [0] * len(prompts)

    assert asked(Judge(first), ["a", "b"], [0, 0])[0] == [1.0, 0.0]
    assert asked(Judge(first, both_orders=True), ["a", "b"], [0, 0])[0] == [0.5, 0.5]
    assert asked(Judge(longer, both_orders=True), ["a", "bb"], [0, 0])[0] == [0.0, 1.0]


def test_the_judge_sees_each_pair_with_its_own_prompt():
    seen = []

    def watching(prompts, completions):
        seen.extend(zip(prompts, map(tuple, completions), strict=True))
        return [0] * len(prompts)

    asked(Judge(watching), ["a", "b", "c", "d"], [0, 1, 0, 1])
    assert seen == [("p0", ("a", "c")), ("p1", ("b", "d"))]


@pytest.mark.parametrize("answer", [[2], [0, 0], [0.5], None, "0", [None], [[0]]], ids=str)
def test_an_answer_that_is_none_is_a_broken_judge(answer):
    with pytest.raises(RolloutError, match="the judge's answer"):
        asked(Judge(lambda prompts, completions: answer), ["a", "b"], [0, 0])


def test_a_judge_is_made_from_a_recipe_and_reads_groups_of_a_rollout(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def longer(prompts, completions):\n"
        "    return [int(len(b) > len(a)) for a, b in completions]\n"
    )
    judge = rewards.make({"name": "judge", "function": f"{tmp_path / 'mine.py'}:longer"})
    groups = [
        TokenGroup((5,), (TokenCompletion((7,)), TokenCompletion((7, 7)))),
        TokenGroup((5,), (TokenCompletion((7, 7, 7)), TokenCompletion((7,)))),
    ]
    scores = score_groups(judge, groups, lambda ids: "x" * len(ids))
    assert scores.values == [0, 1, 1, 0]  # the same prompt twice is still two groups
    with pytest.raises(UsageError):
        rewards.make("judge")
    with pytest.raises(RolloutError, match="alone"):
        score_groups(judge, random_groups(1, 3, 1), lambda ids: "x")
