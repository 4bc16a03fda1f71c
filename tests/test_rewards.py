"""Rewards: their numbers, their columns, and that a failed one is never a zero."""

from __future__ import annotations

import pytest

from truing import rewards
from truing.errors import RolloutError, UsageError
from truing.groups import Completion, Group, Prompt, TokenCompletion, TokenGroup
from truing.rewards.base import Reward, score
from truing.rollouts.scoring import score_groups


def test_character_share_counts():
    reward = rewards.make({"name": "character_share", "characters": "ab"})
    assert score(reward, ["", "", ""], ["abab", "axxx", ""]) == [1.0, 0.25, 0.0]


def test_vader_knows_praise_from_complaint():
    pytest.importorskip("vader")
    good, bad, none = score(
        rewards.make("vader"), [""] * 3, ["What a wonderful day!", "This is awful.", "A table."]
    )
    assert good > 0.5 > 0 > -0.3 > bad
    assert none == 0.0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("vadr", "did you mean 'vader'"),
        ({"name": "character_share", "characters": ""}, "characters"),
        ({"name": "character_share", "letters": "x"}, "letters"),
        ({"characters": "x"}, "needs a name"),
    ],
)
def test_a_wrong_reward_is_a_usage_error(spec, words):
    with pytest.raises(UsageError, match=words):
        rewards.make(spec)


class Broken(Reward):
    def __init__(self, answer):
        self.answer = answer

    def __call__(self, prompts, completions, **columns):
        return self.answer


@pytest.mark.parametrize("answer", [[1.0], [1.0, float("nan")], [float("inf"), 0.0]])
def test_a_failed_reward_is_never_a_zero(answer):
    with pytest.raises(RolloutError, match="Broken"):
        score(Broken(answer), ["a", "b"], ["c", "d"])


def test_rewards_get_the_prompt_a_person_reads_and_the_rows_columns():
    seen = {}

    class Spy(Reward):
        def __call__(self, prompts, completions, **columns):
            seen.update(prompts=prompts, completions=completions, columns=columns)
            return [0.0] * len(completions)

    origin = Group(Prompt("why?"), (Completion("x"),), columns={"answer": 42})
    group = TokenGroup((1,), (TokenCompletion((5,)), TokenCompletion((6,))), origin=origin)
    score_groups(Spy(), [group], lambda ids: f"<{ids[0]}>")
    assert seen["prompts"] == ["why?", "why?"]
    assert seen["completions"] == ["<5>", "<6>"]
    assert seen["columns"] == {"answer": [42, 42]}
