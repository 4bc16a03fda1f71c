"""Stage order, and references that lead nowhere."""

from __future__ import annotations

import pytest
from rich.console import Console

from truing import config
from truing.errors import UsageError
from truing.pipeline.graph import order
from truing.pipeline.run import run_recipe


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


@pytest.mark.parametrize("role", ["reward", "gold", "proxy", "annotator"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: name,
        lambda name: {"name": "model", "path": name},
        lambda name: {"name": "mixture", "parts": {"a": "vader", "b": name}},
        lambda name: {"name": "mixture", "parts": {"a": {"name": "model", "path": name}}},
        lambda name: {
            "name": "ensemble",
            "members": {"a": "vader", "b": {"name": "mixture", "parts": {"c": name}}},
        },
    ],
)
def test_a_stage_is_found_wherever_a_reward_names_it(role, wrap):
    fields = {
        "reward": (config.OnPolicy, {"method": "rloo"}),
        "gold": (config.BestOfN, {"reward": "vader"}),
        "proxy": (config.Evaluate, {"policies": {"a": "model"}, "reference": "model"}),
        "annotator": (config.Preferences, {}),
    }
    kind, needed = fields[role]
    stage = kind(**needed, **{role: wrap("judge")})
    parents = {"user": stage.parents(), "judge": {"from": "model"}}
    assert order(parents, "r") == ["judge", "user"]
    unnamed = kind(**needed, **{role: wrap("repetition")})
    assert order({"user": unnamed.parents()}, "r") == ["user"]


def test_a_stage_of_the_wrong_kind_is_refused_deep_inside_a_reward():
    raw = {
        "name": "small",
        "output": "nowhere",
        "model": {"path": "random:llama"},
        "data": {"path": "nothing.jsonl"},
        "stages": {
            "start": {"method": "sft"},
            "end": {"method": "rloo", "reward": {"name": "mixture", "parts": {"a": "start"}}},
        },
    }
    with pytest.raises(UsageError, match=r"reward\.parts\.a names 'start', which makes weights"):
        run_recipe(
            config.check_recipe(raw, "r"),
            where="r",
            resume=False,
            overwrite=False,
            console=Console(quiet=True),
        )


def test_a_circle_is_named():
    with pytest.raises(UsageError, match="wait for each other"):
        order({"a": {"from": "b"}, "b": {"from": "a"}}, "r")
