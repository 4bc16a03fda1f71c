"""Stage keys: sorted to their class, refused with the nearest name, before anything loads."""

from __future__ import annotations

import pytest

from truing import objectives
from truing.config import Offline, OnPolicy
from truing.errors import UsageError
from truing.rollouts import credit
from truing.training.method import resolve


def test_keys_reach_the_class_they_belong_to():
    method = resolve(
        "p",
        {"method": "ppo", "reward": "r", "cliprange": 0.3, "lam": 1, "num_rollouts": 2},
        "here",
    )
    assert method.objective.cliprange == 0.3
    assert method.credit.lam == 1.0
    assert method.training.num_rollouts == 2
    assert method.knobs["gamma"] == 1.0
    assert method.knobs["learning_rate"] == method.training.learning_rate


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"method": "dpo", "bta": 1}, ["stages.s.bta", "did you mean 'beta'"]),
        ({"method": "dpo", "beta": -1}, ["stages.s.beta", "greater than 0"]),
        ({"method": "dpo", "beta": "much"}, ["stages.s.beta", "number"]),
        ({"method": "dpo", "learning_rat": 1}, ["did you mean 'learning_rate'"]),
        ({"method": "dpo", "temperature": 1.0}, ["unknown key 'stages.s.temperature'"]),
        ({"method": "sftt"}, ["did you mean 'sft'"]),
        ({"method": "ppo"}, ["'stages.s.reward' is missing"]),
        ({"method": "sft", "batch_size": 0}, ["stages.s.batch_size", "greater than 0"]),
        ({"method": "no_such_module:Class"}, ["cannot import"]),
    ],
)
def test_a_wrong_key_says_what_where_and_what_to_do(raw, words):
    with pytest.raises(UsageError) as caught:
        resolve("s", raw, "my.yaml")
    for word in ["my.yaml", "what to do", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", objectives.names())
def test_no_key_has_two_owners(name):
    kind = objectives.find(name)
    own = set(kind.__dataclass_fields__)
    rule = set(credit.find(kind.credit).__dataclass_fields__) if kind.credit else set()
    schema = OnPolicy if kind.credit else Offline
    common = {f.alias or n for n, f in schema.model_fields.items()}
    assert (own & rule) | ((own | rule) & common) <= {"max_completion_length"}


@pytest.mark.parametrize("name", ["grpo", "dapo"])
def test_what_the_stage_has_too_takes_the_stages_value(name):
    method = resolve("s", {"method": name, "reward": "r", "max_completion_length": 9}, "here")
    assert method.objective.max_completion_length == 9
    assert method.credit.max_completion_length == 9
    assert method.training.max_completion_length == 9


def test_a_preset_sets_everything_its_paper_sets_and_the_recipe_wins():
    method = resolve("s", {"method": "dr_grpo", "reward": "r", "epsilon": 0.1}, "here")
    assert method.objective.aggregation == "constant"
    assert method.credit.scale_rewards == "none"
    assert method.objective.epsilon == 0.1
    assert method.training.num_generations == 8
    assert method.knobs["method"] == "dr_grpo"
    again = resolve("s", {"method": "dr_grpo", "reward": "r", "scale_rewards": "group"}, "here")
    assert again.credit.scale_rewards == "group"


def test_an_objective_from_outside_is_named_by_module_and_class(tmp_path, monkeypatch):
    (tmp_path / "outside_objective.py").write_text(
        "from pydantic.dataclasses import dataclass\n"
        "from truing.objectives.supervised.sft import SFT\n"
        "@dataclass(frozen=True)\n"
        "class Mine(SFT):\n    strength: float = 2.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    method = resolve("s", {"method": "outside_objective:Mine", "strength": 3}, "here")
    assert method.objective.strength == 3.0
