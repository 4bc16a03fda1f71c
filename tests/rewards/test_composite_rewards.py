"""Mixtures and ensembles: by hand, with their parts, their faults and their fields."""

from __future__ import annotations

import statistics

import pytest

from truing import rewards
from truing.errors import RolloutError, UsageError
from truing.rewards.base import Patience, Reward, Unscored, score


class Fixed(Reward):
    """These numbers, whatever is asked."""

    def __init__(self, *values, wants=()):
        self.values, self.asked = values, frozenset(wants)

    @property
    def wants(self):
        return self.asked

    def __call__(self, prompts, completions, **columns):
        return list(self.values)


def mixture(**fields):
    return rewards.make({"name": "mixture", **fields})


def ensemble(combine, *members, **fields):
    named = {f"m{i}": Fixed(*values) for i, values in enumerate(members)}
    return rewards.make({"name": "ensemble", "members": named, "combine": combine, **fields})


def ask(reward, count=2, patience=Patience(0)):  # noqa: B008
    return score(reward, ["p"] * count, ["c"] * count, patience=patience)


def test_a_mixture_is_the_weighted_sum_of_its_parts():
    found = ask(mixture(parts={"a": Fixed(1.0, 2.0), "b": Fixed(10.0, -10.0)}, weights={"b": 0.5}))
    assert found.values == [6.0, -3.0]
    assert found.parts == {"a": [1.0, 2.0], "b": [10.0, -10.0]}
    penalty = mixture(parts={"a": Fixed(1.0, 2.0)}, weights={"a": -3.0})
    assert ask(penalty).values == [-3.0, -6.0]
    assert penalty(["p"] * 2, ["c"] * 2) == [-3.0, -6.0]


def test_a_part_that_cannot_tell_leaves_the_whole_unscored():
    parts = {"a": Fixed(1.0, None, 5.0), "b": Fixed(float("nan"), Unscored("slow"), 1.0)}
    found = ask(mixture(parts=parts), count=3)
    assert found.values == [None, None, 6.0]
    assert found.faults == {"b/nan": 1, "a/none": 1}  # each counted once, for the first part
    assert found.parts == {"a": [1.0, None, 5.0], "b": [None, None, 1.0]}
    with pytest.raises(RolloutError, match="a/none: 1"):
        ask(mixture(parts={"a": Fixed(None)}), count=1)


def test_mixtures_of_mixtures_and_specs():
    inner = {"name": "mixture", "parts": {"x": {"name": "character_share", "characters": "c"}}}
    found = ask(mixture(parts={"inner": inner, "b": Fixed(1.0, 1.0)}, weights={"inner": 2.0}))
    assert found.values == [3.0, 3.0]
    assert found.parts == {"inner": [1.0] * 2, "inner/x": [1.0] * 2, "b": [1.0] * 2}


def test_what_parts_want_is_wanted():
    parts = {"a": Fixed(1.0, wants=["completion_ids"]), "b": Fixed(1.0, wants=["prompt_messages"])}
    both = {"completion_ids", "prompt_messages"}
    assert mixture(parts=parts).wants == both
    assert rewards.make({"name": "ensemble", "members": parts}).wants == both


@pytest.mark.parametrize("kind", ["mixture", "ensemble"])
def test_a_part_that_fails_is_named_and_has_the_same_patience(kind):
    calls = []

    class Fails(Reward):
        def __call__(self, prompts, completions, **columns):
            calls.append(1)
            raise OSError("line cut")

    inside = {"parts" if kind == "mixture" else "members": {"a": Fails(), "b": Fixed(1.0)}}
    with pytest.raises(RolloutError, match=r"(?s)Fails.*line cut"):
        ask(rewards.make({"name": kind, **inside}), 1, Patience(retries=2, backoff=0.0))
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"parts": {}}, "parts"),
        ({"parts": {"a": "vadr"}}, "did you mean 'vader'"),
        ({"parts": {"a": "vader"}, "weights": {"b": 1.0}}, "weight for 'b'"),
        ({"parts": {"a": "vader"}, "weights": {"a": float("inf")}}, "weights"),
    ],
)
def test_a_wrong_mixture_is_a_usage_error(fields, words):
    with pytest.raises(UsageError, match=words):
        mixture(**fields)


MEMBERS = ([1.0, 4.0], [2.0, 4.0], [6.0, 4.0])


def test_ensembles_by_hand():
    # the first completion: mean 3, squared distances 4, 1, 9; the second: all agree on 4
    assert ask(ensemble("mean", *MEMBERS)).values == [3.0, 4.0]
    assert ask(ensemble("worst_case", *MEMBERS)).values == [1.0, 4.0]
    variance, deviation = 14 / 3, (14 / 3) ** 0.5
    found = ask(ensemble("variance", *MEMBERS, coefficient=0.1))
    assert found.values == pytest.approx([3 - 0.1 * variance, 4.0])
    found = ask(ensemble("deviation", *MEMBERS, coefficient=2.0))
    assert found.values == pytest.approx([3 - 2 * deviation, 4.0])
    assert found.parts["disagreement"] == pytest.approx([deviation, 0.0])
    assert found.parts["m2"] == [6.0, 4.0]


@pytest.mark.parametrize("combine", ["variance", "deviation"])
def test_a_larger_coefficient_trusts_less_where_members_disagree(combine):
    found = [ask(ensemble(combine, *MEMBERS, coefficient=c)).values for c in (0.0, 0.5, 1.0)]
    assert found[0] == [3.0, 4.0]
    assert found[0][0] > found[1][0] > found[2][0]
    assert {values[1] for values in found} == {4.0}


def test_rules_go_from_bold_to_careful():
    first = [ask(ensemble(c, *MEMBERS)).values[0] for c in ("mean", "deviation", "variance")]
    assert first == sorted(first, reverse=True)
    assert statistics.fmean(m[0] for m in MEMBERS) == first[0]


def test_a_member_that_cannot_tell_leaves_the_whole_unscored():
    found = ask(ensemble("worst_case", [1.0, None], [2.0, 3.0]))
    assert found.values == [1.0, None]
    assert found.faults == {"m0/none": 1}
    assert found.parts["disagreement"] == [0.5, None]
    assert found.parts["m1"] == [2.0, 3.0]


def test_one_member_is_no_ensemble():
    with pytest.raises(UsageError, match="members"):
        ensemble("mean", [1.0, 2.0])
    with pytest.raises(UsageError, match="coefficient"):
        ensemble("variance", *MEMBERS, coefficient=-1.0)
