"""Functions with TRL's signature: what they are given, where they are found, TRL's own."""

from __future__ import annotations

import asyncio
import functools

import pytest

from truing import rewards
from truing.errors import DataError, RolloutError, UsageError
from truing.groups import Group, Message, Prompt, TokenCompletion, TokenGroup
from truing.rewards.base import Patience, score
from truing.rollouts.scoring import score_groups

ONCE = Patience(retries=0)
TALK = (Message("system", "be brief"), Message("user", "1 + 1?"))


def drawn(*texts, messages=None, **columns):
    """One group with these completions, and what turns its ids back into text."""
    origin = Group(Prompt("1 + 1?", messages), columns=columns)
    completions = tuple(TokenCompletion((i,)) for i in range(len(texts)))
    return [TokenGroup((0,), completions, origin=origin)], lambda ids: texts[ids[0]]


def ask(function, *texts, **given):
    groups, readable = drawn(*texts, **given)
    return score_groups(rewards.make(function), groups, readable, ONCE)


def test_columns_of_the_rows_cannot_take_the_place_of_what_is_scored():
    """UltraFeedback's rows have a column `completions` of their own."""

    def lengths(prompts, completions, gold):
        assert prompts == ["1 + 1?"] * 2
        return [len(text) + more for text, more in zip(completions, gold, strict=True)]

    scores = ask(lengths, "a", "bcd", completions="other", prompts="others", gold=1)
    assert scores.values == [2.0, 4.0]


def test_a_function_gets_texts_tokens_and_columns_by_name():
    seen = {}

    def reward(prompts, completions, completion_ids, answer, **kwargs):
        seen.update(prompts=prompts, ids=completion_ids, answer=answer, more=kwargs)
        return [float(text == right) for text, right in zip(completions, answer, strict=True)]

    found = ask(reward, "2", "3", answer="2", source="book")
    assert found.values == [1.0, 0.0]
    assert seen == {
        "prompts": ["1 + 1?"] * 2,
        "ids": [[0], [1]],
        "answer": ["2", "2"],
        "more": {"source": ["book", "book"]},
    }


def test_conversations_come_as_messages():
    def reward(prompts, completions, **kwargs):
        assert prompts == [[{"role": m.role, "content": m.content} for m in TALK]] * 2
        assert completions[1] == [{"role": "assistant", "content": "three"}]
        return [float(len(c[0]["content"])) for c in completions]

    assert ask(reward, "two", "three", messages=TALK).values == [3.0, 5.0]


def test_a_function_is_passed_what_it_has_a_place_for():
    assert ask(lambda completions: [1.0 for _ in completions], "a", answer=1).values == [1.0]
    assert ask(lambda answer, scale=2.0: [a * scale for a in answer], "a", answer=3).values == [6.0]
    assert ask(functools.partial(lambda answer, by: [by], by=4.0), "a", answer=3).values == [4.0]

    class Callable:
        def __call__(self, completions, **kwargs):
            return [7.0] * len(completions)

    assert ask(Callable(), "a").values == [7.0]


def test_async_functions_are_awaited():
    async def reward(completions, **kwargs):
        await asyncio.sleep(0)
        return [float(len(text)) for text in completions]

    assert ask(reward, "abc").values == [3.0]

    async def calls_it():  # also from where a loop is running, as in a notebook
        return ask(reward, "abcd").values

    assert asyncio.run(calls_it()) == [4.0]


def test_what_is_missing_is_named():
    with pytest.raises(DataError, match=r"(?s)needs_more.*'solution'.*answer"):
        ask(needs_more, "a", answer=1)
    with pytest.raises(UsageError, match="trainer_state"):
        ask(lambda completions, trainer_state: [1.0], "a")


def needs_more(completions, solution):
    return solution


def test_faults_are_those_of_every_reward():
    assert ask(lambda completions: [None, True], "a", "b").values == [None, 1.0]
    with pytest.raises(RolloutError, match=r"(?s)fails.*ValueError: what"):
        ask(fails, "a")
    with pytest.raises(RolloutError, match="1 scores for 2"):
        ask(lambda completions: [1.0], "a", "b")


def fails(completions):
    raise ValueError("what?")


FILE = """
from dataclasses import dataclass
from truing.rewards.base import Reward

loaded = 0
loaded += 1

def by_length(completions, **kwargs):
    return [float(len(text)) for text in completions]

@dataclass(frozen=True)
class Times(Reward):
    factor: float
    def __call__(self, prompts, completions, **columns):
        return [self.factor * len(text) for text in completions]

ready = Times(3.0)
number = 7
"""


def test_from_a_file_or_a_module(tmp_path, monkeypatch):
    (tmp_path / "my_rewards_abc.py").write_text(FILE)
    file = str(tmp_path / "my_rewards_abc.py")
    monkeypatch.syspath_prepend(tmp_path)
    for place in (file, "my_rewards_abc"):
        assert ask(f"{place}:by_length", "abc").values == [3.0]
        assert ask({"name": f"{place}:Times", "factor": 2.0}, "abc").values == [6.0]
        assert ask(f"{place}:ready", "abc").values == [9.0]
        assert ask({"name": "function", "function": f"{place}:by_length"}, "ab").values == [2.0]
        with pytest.raises(UsageError, match="no function or class 'number'"):
            rewards.make(f"{place}:number")
    parts = {"long": f"{file}:by_length", "vowels": "character_share"}
    found = ask({"name": "mixture", "parts": parts}, "aab")
    assert found.parts["long"] == [3.0]
    monkeypatch.chdir(tmp_path)
    assert ask("my_rewards_abc.py:by_length", "abc").values == [3.0]
    (tmp_path / "bad_rewards_abc.py").write_text("1 / 0")
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        rewards.make("bad_rewards_abc.py:by_length")


def test_trls_own_rewards_run_as_they_are():
    trl_rewards = pytest.importorskip("trl.rewards")
    think = trl_rewards.think_format_reward
    texts = ("<think>\nhm\n</think>\n2", "<think>\nhm\n2")
    assert ask(think, *texts, messages=TALK).values == think(
        [[{"role": "assistant", "content": text}] for text in texts]
    )
    overlong = trl_rewards.get_soft_overlong_punishment(max_completion_len=2, soft_punish_cache=2)
    assert ask(overlong, "a", "b").values == [-0.5, -0.5]


def test_trls_accuracy_reward_skips_what_it_cannot_read():
    trl_rewards = pytest.importorskip("trl.rewards")
    pytest.importorskip("math_verify")
    texts, right = (r"\boxed{\frac{1}{3}}", r"\boxed{2}"), r"\frac{1}{3}"
    found = ask(trl_rewards.accuracy_reward, *texts, messages=TALK, solution=right)
    assert found.values == [1.0, 0.0]


def test_a_function_that_is_asked_without_a_rollout():
    reward = rewards.make(
        lambda prompts, completions: [len(p + c) for p, c in zip(prompts, completions, strict=True)]
    )
    assert score(reward, ["ab"], ["c"]).values == [3.0]
