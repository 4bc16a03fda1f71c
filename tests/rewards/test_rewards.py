"""Rewards: how they are made, their numbers, their columns, and that a failed one is no zero."""

from __future__ import annotations

import pytest

from truing import rewards
from truing.errors import RolloutError, UsageError
from truing.groups import Completion, Group, Message, Prompt, TokenCompletion, TokenGroup
from truing.rewards.base import Reward, score
from truing.rollouts.scoring import score_groups, scores_by_group, unscored


def test_character_share_counts():
    reward = rewards.make({"name": "character_share", "characters": "ab"})
    assert score(reward, ["", "", ""], ["abab", "axxx", ""]).values == [1.0, 0.25, 0.0]


def test_vader_knows_praise_from_complaint():
    pytest.importorskip("vader")
    good, bad, none = score(
        rewards.make("vader"), [""] * 3, ["What a wonderful day!", "This is awful.", "A table."]
    ).values
    assert good > 0.5 > 0 > -0.3 > bad
    assert none == 0.0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("vadr", "did you mean 'vader'"),
        ({"name": "character_share", "characters": ""}, "characters"),
        ({"name": "character_share", "letters": "x"}, "letters"),
        ({"characters": "x"}, "needs a name"),
        ("no_such_module_here:reward", "cannot import 'no_such_module_here'"),
        ("math:no_such_function", "no function or class 'no_such_function'"),
        ("math:pi", "no function or class 'pi'"),
        (":reward", "names no function"),
        ("nowhere.py:reward", "FileNotFoundError"),
        ({"name": "math:sqrt", "digits": 3}, "a function has no fields"),
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


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), None])
def test_a_failed_reward_is_never_a_zero(bad):
    assert score(Broken([1.0, bad]), ["a", "b"], ["c", "d"]).values == [1.0, None]
    with pytest.raises(RolloutError, match="Broken"):
        score(Broken([1.0]), ["a", "b"], ["c", "d"])


class Spy(Reward):
    def __init__(self, *wants):
        self.asked = frozenset(wants)

    @property
    def wants(self):
        return self.asked

    def __call__(self, prompts, completions, **columns):
        self.seen = {"prompts": prompts, "completions": completions, "columns": columns}
        return [None if text == "<6>" else 1.0 for text in completions]


def test_rewards_get_the_prompt_a_person_reads_and_the_rows_columns():
    spy = Spy()
    origin = Group(Prompt("why?"), (Completion("x"),), columns={"answer": 42})
    group = TokenGroup((1,), (TokenCompletion((5,)), TokenCompletion((6,))), origin=origin)
    score_groups(spy, [group], lambda ids: f"<{ids[0]}>")
    assert spy.seen["prompts"] == ["why?", "why?"]
    assert spy.seen["completions"] == ["<5>", "<6>"]
    assert spy.seen["columns"] == {"answer": [42, 42]}


def test_what_the_sampler_knows_comes_only_when_it_is_wanted():
    spy = Spy("completion_ids", "prompt_messages")
    talk = Group(Prompt("why?", (Message("user", "why?"),)), columns={"answer": 1, "seen": 2})
    plain = Group(Prompt("so"), columns={"answer": 3})
    groups = [
        TokenGroup((1,), (TokenCompletion((5, 9)), TokenCompletion((6,))), origin=talk),
        TokenGroup((1,), (TokenCompletion((7,)),), origin=plain),
    ]
    scores = score_groups(spy, groups, lambda ids: f"<{ids[0]}>")
    messages = [{"role": "user", "content": "why?"}]
    assert spy.seen["columns"] == {
        "answer": [1, 1, 3],
        "seen": [2, 2, None],  # in one row and not in the other
        "completion_ids": [[5, 9], [6], [7]],
        "prompt_messages": [messages, messages, None],
    }
    assert scores.values == [1.0, None, 1.0]
    assert scores_by_group(scores, groups) == [[1.0, None], [1.0]]
    assert unscored(scores) == "1 of 3 completions unscored (none: 1)"


def test_a_class_from_outside_is_made_with_its_fields():
    made = rewards.make({"name": f"{__name__}:Broken", "answer": [2.0]})
    assert score(made, ["a"], ["b"]).values == [2.0]
    assert rewards.make(made) is made


def test_reward_models_are_opened_by_whom_is_handed_in(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    seen = []

    def load(model):
        seen.append((model.path, model.template))
        return Broken([3.0])

    inside = {"name": "mixture", "parts": {"judge": {"name": "model", "path": "m"}}}
    assert score(rewards.make(str(tmp_path), load), ["a"], ["b"]).values == [3.0]
    assert score(rewards.make(inside, load), ["a"], ["b"]).values == [3.0]
    assert seen == [(str(tmp_path), "auto"), ("m", "auto")]
    with pytest.raises(UsageError, match="opens reward models"):
        score(rewards.make(str(tmp_path)), ["a"], ["b"])
