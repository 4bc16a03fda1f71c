"""Stage order, and references that lead nowhere."""

from __future__ import annotations

import pytest

from truing.errors import UsageError
from truing.pipeline.graph import order


def test_parents_come_first_whatever_the_order_of_the_recipe():
    parents = {
        "ppo": {"from": "sft", "reward": "rm", "data": "data"},
        "rm": {"from": "sft", "data": "data"},
        "sft": {"from": "model", "data": "data"},
    }
    names = order(parents, "r")
    assert sorted(names) == ["ppo", "rm", "sft"]
    assert names.index("sft") < names.index("rm") < names.index("ppo")


def test_a_name_no_stage_has_is_suggested():
    with pytest.raises(UsageError, match="did you mean 'sft'"):
        order({"sft": {"from": "model"}, "dpo": {"from": "stf"}}, "r")


def test_a_reward_may_be_a_plugin():
    assert order({"ppo": {"from": "model", "reward": "vader"}}, "r") == ["ppo"]


def test_a_circle_is_named():
    with pytest.raises(UsageError, match="wait for each other"):
        order({"a": {"from": "b"}, "b": {"from": "a"}}, "r")
