"""Rewards of every kind in whole runs: foreign reward models, functions, and faults."""

from __future__ import annotations

import inspect
import io
import json
import time
from statistics import fmean, pstdev

import pytest
import torch
from pydantic import TypeAdapter
from rich.console import Console

from foreign_judges import other_tokenizer, saved, standalone
from truing.config import RewardSpec, check_recipe
from truing.errors import RolloutError, TruingError
from truing.pipeline.run import run_recipe
from truing.rundir import RunDirectory

written_reward = TypeAdapter(RewardSpec).dump_python
PROMPTS = [{"prompt": f"Number {i}: ", "answer": str(i)} for i in range(6)]
FUNCTIONS = """
def odd(completions, **kwargs):  # cannot judge every second one
    return [None if i % 2 else float(len(text)) for i, text in enumerate(completions)]

def half(prompts, **kwargs):
    return [1.0 if prompt < "Number 3" else None for prompt in prompts]
"""


def close(found, expected):
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.fixture
def run(tmp_path):
    """Run stages on the prompts. Returns (output folder, what was said)."""

    def run(**stages):
        file = tmp_path / "prompts.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
        raw = {
            "name": "small",
            "output": str(tmp_path / "-".join(stages)),
            "model": {"path": "random:llama", "dtype": "float32"},
            "data": {"path": str(file), "test_path": str(file)},
            "stages": stages,
        }
        said = io.StringIO()
        console = Console(file=said, width=200)
        recipe = check_recipe(raw, "recipe")
        output = run_recipe(recipe, where="recipe", resume=False, overwrite=False, console=console)
        return output, said.getvalue()

    return run


@pytest.fixture
def functions(tmp_path):
    """Where the functions are, as a recipe names them."""
    file = tmp_path / "functions.py"
    file.write_text(FUNCTIONS)
    return lambda name: f"{file}:{name}"


def test_through_ppo_it_scores_as_standalone(run, tmp_path):
    """The acceptance test: another vocabulary, the same scores."""
    made = saved(tmp_path / "judge", tokenizer=other_tokenizer(template=None, pad="<pad>"))
    shared = {
        "method": "ppo",
        "num_rollouts": 1,
        "rollout_batch_size": 4,
        "batch_size": 4,
        "seed": 3,
    }
    shared |= {"max_completion_length": 12, "score_normalization": "none"}
    mixed = {"name": "mixture", "parts": {"judge": str(made)}, "weights": {"judge": 2.0}}
    output, said = run(
        ppo=shared | {"reward": str(made)},
        named=shared | {"reward": {"name": "model", "path": str(made)}},
        mixed=shared | {"reward": mixed},
    )
    assert said.count("scores through text") == 1
    found = {}
    for stage in ("ppo", "named", "mixed"):
        drawn = RunDirectory(output / stage).rows("samples/rollout-0000.jsonl")
        texts = [row["prompt"] + row["completion"] for row in drawn]
        found[stage] = [row["score"] for row in drawn]
        factor = 2.0 if stage == "mixed" else 1.0
        close(found[stage], [factor * value for value in standalone(made, texts)])
    assert len(set(found["ppo"])) == 4


def test_pairs_with_an_unscored_side_are_left_out_and_counted(run, functions):
    pairs = {"method": "preferences", "num_generations": 4, "max_completion_length": 6}
    whole = pairs | {"annotator": {"name": "character_share"}, "seed": 1}
    holes = pairs | {"annotator": functions("odd"), "seed": 1}
    with pytest.raises(RolloutError, match="unscored"):
        run(holes=holes)  # neighbours are compared: each pair has a hole
    some = {"name": "mixture", "parts": {"all": "character_share", "some": functions("half")}}
    output, said = run(whole=whole, some=whole | {"annotator": some})
    found = {name: RunDirectory(output / name) for name in ("whole", "some")}
    assert "train_unscored" not in found["whole"].info().facts
    facts = found["some"].info().facts
    assert facts["train_unscored"] == facts["test_unscored"] == {"some/none": 12}
    assert said.count("12 of 24 completions unscored (some/none: 12)") == 2
    kept = [row["prompt"] for row in found["some"].rows("train.jsonl")]
    assert set(kept) == {row["prompt"] for row in PROMPTS[:3]}
    assert facts["train_pairs"] == len(kept) < found["whole"].info().facts["train_pairs"]


def test_evaluation_says_how_many_it_could_not_score(run, functions, tmp_path):
    judge = saved(tmp_path / "judge", tokenizer=other_tokenizer(template=None, pad="<pad>"))
    stage = {"method": "evaluate", "policies": {"base": "model", "again": "model"}}
    stage |= {"reference": "model", "max_completion_length": 6}
    output, said = run(some=stage | {"gold": functions("half")})
    judged, _ = run(judged=stage | {"gold": "exact_match", "proxy": str(judge)})
    info = RunDirectory(output / "some").info()
    assert info.facts["unscored"] == {n: {"gold": {"none": 3}} for n in ("base", "again")}
    assert "base, gold: 3 of 6 completions unscored (none: 3)" in said
    results = json.loads((output / "some" / "eval" / "policies.json").read_text())
    base, again = results["policies"]
    assert (base["gold"]["n"], base["gold"]["mean"]) == (3, 1.0)  # not 0.5: no zeros
    assert again["gold_gain"]["n"] == 3
    assert "unscored" not in RunDirectory(judged / "judged").info().facts
    rows = RunDirectory(judged / "judged").rows("samples/base.jsonl")
    assert {row["gold"] for row in rows} == {0.0}  # the rows' column has come to the reward
    close(
        [row["proxy"] for row in rows], standalone(judge, [r["prompt"] + r["text"] for r in rows])
    )


def vowels(completions, **kwargs):
    return [float(sum(letter in "aeiou" for letter in text)) for text in completions]


def test_a_mixture_of_a_stage_and_a_function(run):
    """What later stages are told by name inside of a reward, and what Python hands over itself."""
    pairs = {"method": "preferences", "annotator": "character_share", "max_completion_length": 6}
    judge = {"method": "bradley_terry", "data": "pairs", "max_steps": 1, "batch_size": 2}
    parts = {"judge": "judge", "again": {"name": "model", "path": "judge"}, "vowels": vowels}
    policy = {
        "method": "rloo",
        "reward": {"name": "mixture", "parts": parts, "weights": {"again": -1.0}},
        "num_rollouts": 1,
        "rollout_batch_size": 4,
        "num_generations": 2,
        "batch_size": 8,
        "max_completion_length": 12,
    }
    look = {"method": "evaluate", "policies": {"policy": "policy"}, "reference": "policy"}
    look |= {"proxy": policy["reward"], "gold": vowels, "max_completion_length": 12}
    output, _ = run(look=look, policy=policy, judge=judge, pairs=pairs)
    (metrics,) = RunDirectory(output / "policy").metrics()
    drawn = RunDirectory(output / "policy").rows("samples/rollout-0000.jsonl")
    expected = vowels([row["completion"] for row in drawn])
    close([row["score"] for row in drawn], expected)  # the judge and its negative cancel
    assert metrics["rewards/vowels/mean"] == pytest.approx(fmean(expected))
    assert metrics["rewards/vowels/std"] == pytest.approx(pstdev(expected))
    assert metrics["rewards/judge/std"] == pytest.approx(metrics["rewards/again/std"])
    assert metrics["rewards/judge/std"] > 0
    rows = RunDirectory(output / "look").rows("samples/policy.jsonl")
    close([row["proxy"] for row in rows], [row["gold"] for row in rows])
    parents = RunDirectory(output / "policy").info().parents
    assert parents["reward.parts.judge"] == parents["reward.parts.again.path"] == "judge"


PAIRS = {"method": "preferences", "annotator": "character_share", "max_completion_length": 6}


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"critic": "reward"}, "starts as the reward model"),
        ({"ptx_coef": 0.5}, "needs demonstrations"),
        ({"temperature": 0}, "variety"),
    ],
)
def test_what_cannot_be_learnt_from_is_said_before_anything_runs(run, tmp_path, knobs, words):
    ppo = {"method": "ppo", "reward": "character_share", **knobs}
    with pytest.raises(TruingError, match=words):
        run(before=PAIRS, ppo=ppo)
    assert not (tmp_path / "before-ppo").exists()


def failing(times, seconds=0.0):
    """A reward that raises so often, and takes so long."""
    calls = []

    def reward(completions, **kwargs):
        calls.append(1)
        time.sleep(seconds)
        if len(calls) <= times:
            raise ConnectionError("no answer")
        return [float(len(text)) for text in completions]

    return reward


def test_a_reward_is_asked_again_as_often_as_the_recipe_says(run):
    stage = {"method": "rloo", "num_rollouts": 1, "rollout_batch_size": 2}
    run(again=stage | {"reward": failing(1), "reward_retries": 1})
    with pytest.raises(RolloutError, match="ConnectionError: no answer"):
        run(never=stage | {"reward": failing(1), "reward_retries": 0})


def test_a_reward_may_take_as_long_as_the_recipe_says(run):
    stage = {"method": "rloo", "num_rollouts": 1, "rollout_batch_size": 2}
    run(waits=stage | {"reward": failing(0, 0.3)})
    with pytest.raises(RolloutError, match=r"no answer within 0.1 s"):
        run(hastens=stage | {"reward": failing(0, 0.3), "reward_timeout": 0.1})


def test_a_function_is_written_down_by_name_and_by_what_it_says(monkeypatch):
    written = written_reward(vowels)
    assert written.startswith(f"{__name__}:vowels#")
    assert written_reward({"parts": {"a": vowels, "b": "vader"}}) == {
        "parts": {"a": written, "b": "vader"}
    }
    other = "def vowels(completions, **kwargs):\n    return [0.0 for _ in completions]\n"
    monkeypatch.setattr(inspect, "getsource", lambda thing: other)
    assert written_reward(vowels) != written  # a changed function is another stage
    monkeypatch.undo()
    assert written_reward(len).startswith("builtins:len#")
