"""Every way in which a reward can fail, and what becomes of it."""

from __future__ import annotations

import sys
import threading
import time

import numpy as np
import pytest
import torch

from truing.errors import DataError, RolloutError, TruingError, UsageError
from truing.rewards.base import Patience, Reward, Unscored, column, score

NAN, INF = float("nan"), float("inf")
HASTY = Patience(retries=2, backoff=0.0, timeout=5.0)


class Says(Reward):
    """Gives its answers one call after the other; raises those that are exceptions."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.calls = []

    def __call__(self, prompts, completions, **columns):
        self.calls.append(time.monotonic())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


def judged(*answers, patience=HASTY):
    reward = Says(*answers)
    return score(reward, ["p"] * 3, ["first", "second", "third"], patience=patience), reward


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (None, "none"),
        (NAN, "nan"),
        (INF, "infinite"),
        (-INF, "infinite"),
        (-(10**400), "infinite"),
        (np.float32("nan"), "nan"),
        (torch.tensor(INF), "infinite"),
        (Unscored("too_long"), "too_long"),
    ],
)
def test_what_is_no_number_leaves_its_completion_unscored(bad, reason):
    scores, reward = judged([1.5, bad, -2])
    assert scores.values == [1.5, None, -2.0]
    assert scores.faults == {reason: 1}
    assert scores.reasons == [None, reason, None]
    assert len(reward.calls) == 1  # there is nothing to try again


def test_reasons_are_counted_apart():
    scores, _ = judged([None, 0.0, NAN])
    assert scores.values == [None, 0.0, None]
    assert scores.faults == {"none": 1, "nan": 1}


@pytest.mark.parametrize(
    "answer",
    [
        [True, False, 1],
        (1, 0, True),
        np.array([1.0, 0.0, 1.0], dtype=np.float32),
        np.array([True, False, True]),
        [np.float64(1), np.int64(0), np.bool_(True)],
        torch.tensor([1.0, 0.0, 1.0], dtype=torch.bfloat16),
        torch.tensor([1.0, 0.0, 1.0], requires_grad=True),
        [torch.tensor(1), torch.tensor(0.0), np.array(1.0)],
    ],
    ids=str,
)
def test_numbers_of_any_make_are_numbers(answer):
    scores, _ = judged(answer)
    assert scores.values == [1.0, 0.0, 1.0]
    assert all(type(value) is float for value in scores.values)
    assert scores.faults == {}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([1.0, 2.0], "2 scores for 3 completions"),
        ([1.0, 2.0, 3.0, 4.0], "4 scores for 3 completions"),
        ([], "0 scores"),
        ([1.0, "2.0", 3.0], "completion 1 is str"),
        ([1.0, [2.0], 3.0], "completion 1 is list"),
        ([1.0, 2j, 3.0], "completion 1 is complex"),
        ([1.0, torch.ones(2), 3.0], "completion 1 is Tensor"),
        ([1.0, Says([]), 3.0], "completion 1 is Says"),
        (None, "it returned NoneType"),
        (1.0, "it returned float"),
        ("abc", "it returned str"),
        ({0: 1.0, 1: 2.0, 2: 3.0}, "it returned dict"),
        ({1.0, 2.0, 3.0}, "it returned set"),
        (torch.tensor(1.0), "it returned float"),
        (np.ones((3, 1)), "completion 0 is list"),
        ((x for x in (1.0, 2.0, 3.0)), "it returned generator"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_reward_stops_at_once(answer, words):
    reward = Says(answer)
    with pytest.raises(RolloutError, match=f"(?s)Says.*{words}"):
        score(reward, ["p"] * 3, ["a", "b", "c"], patience=HASTY)
    assert len(reward.calls) == 1


def test_an_exception_is_tried_again_and_may_pass():
    scores, reward = judged(OSError("line cut"), ValueError("what?"), [1.0, 2.0, 3.0])
    assert scores.values == [1.0, 2.0, 3.0]
    assert len(reward.calls) == 3


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_retries_are_bounded_and_the_end_names_everything(retries):
    reward = Says(OSError("line cut"))
    with pytest.raises(RolloutError) as caught:
        score(reward, ["a prompt"], ["an answer"], patience=Patience(retries, 0.0))
    assert len(reward.calls) == retries + 1
    for word in ("Says", "OSError: line cut", "'a prompt' -> 'an answer'"):
        assert word in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.exit_code == 7


def test_each_wait_is_twice_the_last():
    reward = Says(OSError("line cut"))
    with pytest.raises(RolloutError):
        score(reward, ["p"], ["c"], patience=Patience(retries=2, backoff=0.1))
    first, second, third = reward.calls
    assert second - first >= 0.1
    assert third - second >= 0.2


@pytest.mark.parametrize("kind", [UsageError, RolloutError, DataError])
def test_an_error_that_says_what_to_do_is_not_tried_again(kind):
    reward = Says(kind("the package is not installed", remedy="pip install it"))
    with pytest.raises(kind, match="not installed") as caught:
        score(reward, ["p"], ["c"], patience=HASTY)
    assert isinstance(caught.value, TruingError)
    assert len(reward.calls) == 1


@pytest.mark.parametrize("timeout", [5.0, None])
def test_a_reward_cannot_end_the_run(timeout):
    class Exits(Reward):
        def __call__(self, prompts, completions, **columns):
            sys.exit(0)

    with pytest.raises(RolloutError, match="SystemExit: 0"):
        score(Exits(), ["p"], ["c"], patience=Patience(1, 0.0, timeout))


def test_a_slow_reward_is_no_hang():
    release, calls = threading.Event(), []

    class Slow(Reward):
        def __call__(self, prompts, completions, **columns):
            calls.append(threading.current_thread())
            release.wait(30)
            return [1.0]

    started = time.monotonic()
    with pytest.raises(RolloutError, match=r"(?s)Slow.*no answer within 0.2 s"):
        score(Slow(), ["p"], ["c"], patience=Patience(retries=3, backoff=0.0, timeout=0.2))
    assert time.monotonic() - started < 5
    [left] = calls  # no second one beside the first, which does not keep the process alive
    assert left.daemon
    release.set()
    left.join()


def test_with_more_time_it_is_in_time():
    class Slow(Reward):
        def __call__(self, prompts, completions, **columns):
            time.sleep(0.3)
            return [1.0]

    with pytest.raises(RolloutError):
        score(Slow(), ["p"], ["c"], patience=Patience(timeout=0.05))
    for timeout in (5.0, None):
        assert score(Slow(), ["p"], ["c"], patience=Patience(timeout=timeout)).values == [1.0]


def test_if_nothing_can_be_scored_it_stops():
    with pytest.raises(RolloutError, match=r"not one of 3 .*none: 2, nan: 1") as caught:
        judged([None, NAN, None])
    assert "'p' -> 'first'" in str(caught.value)
    assert score(Says([]), [], []).values == []


def test_a_missing_column_is_named_with_those_there_are():
    assert column({"answer": [1]}, "answer", "math") == [1]
    with pytest.raises(DataError, match=r"(?s)math.*'answer'.*solution"):
        column({"solution": [1]}, "answer", "math")
