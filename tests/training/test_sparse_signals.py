"""Rewards that say nothing yet, or no longer: training goes on, or says why it cannot."""

from __future__ import annotations

import random

import pytest
import torch
from test_step import built

from small_groups import random_groups, scorer
from truing.config import Model
from truing.errors import NumericsError, RolloutError
from truing.rewards.base import Scores
from truing.rundir import RunDirectory
from truing.training.build import build
from truing.training.contract import check_gradients
from truing.training.inputs import Inputs
from truing.training.loop import measure, train
from truing.training.method import resolve


def on_policy(method, score, **knobs):
    raw = {
        "method": method,
        "reward": "given",
        "num_rollouts": 3,
        "rollout_batch_size": 4,
        "num_generations": 2,
        "batch_size": 4,
        "max_completion_length": 4,
        "learning_rate": 1e-2,
        **knobs,
    }
    return build(
        resolve("stage", raw, "test"),
        Inputs(
            source="random:llama",
            revision=None,
            model=Model(path="random:llama", dtype="float32"),
            stop_id=2,
            train=random_groups(1, 8, 0),
            heldout=[],
            demonstrations=[],
            reward_run=None,
            shares_trunk=False,
            reward=score,
            on_rollout=lambda index, rollout: None,
            seed=3,
            where="test",
        ),
    )


@scorer
def constant(completion, group):
    return 7.3


def test_a_reward_that_is_rare_at_first_is_no_bug():
    """All advantages of the first step are 0, so all gradients may be; nothing moves."""
    stage = on_policy("grpo", constant, num_generations=7, batch_size=14)
    for work in stage.source:
        metrics = stage.step(work.micro_batches, work.metrics)
        # equal scores are exactly silent: a rounded mean would be a signal, and Adam would use it
        assert metrics["grad_norm"] < 1e-6
    assert stage.step.taken == stage.source.total_steps


def test_zero_gradients_are_still_refused_where_there_is_a_signal():
    gradients = {"w": torch.zeros(2)}
    with pytest.raises(NumericsError, match="every gradient is zero"):
        check_gradients(gradients, [], "test")
    check_gradients(gradients, [], "test", silent=True)


def test_a_run_whose_later_prompts_are_all_solved_keeps_what_it_learnt(tmp_path):
    calls = []

    def solved_later(groups):
        calls.append(1)
        count = sum(len(group.completions) for group in groups)
        draw = random.Random(len(calls))
        return Scores([draw.random() if len(calls) <= 1 else 1.0 for _ in range(count)])

    stage = on_policy("dapo", solved_later, dynamic_rounds=1, num_generations=2)
    train(stage.step, stage.source, RunDirectory(tmp_path), lambda *_: None, stage.meter)
    rows = RunDirectory(tmp_path).metrics()
    assert stage.step.taken == 2
    assert [row["step"] for row in rows] == [1, 2, 2, 2]
    assert rows[-1]["dynamic/kept_fraction"] == 0


def test_a_run_without_a_single_step_is_an_error(tmp_path):
    stage = on_policy(
        "grpo",
        scorer(lambda completion, _: float(len(completion.ids))),
        overlong_filter=True,
        max_completion_length=1,
    )
    with pytest.raises(RolloutError, match="no step was taken"):
        train(stage.step, stage.source, RunDirectory(tmp_path), lambda *_: None, stage.meter)


def test_the_first_ratio_is_exactly_1_after_completions_were_filtered():
    stage = on_policy(
        "grpo",
        scorer(lambda completion, _: random.random()),
        overlong_filter=True,
        max_completion_length=40,
        num_rollouts=1,
        rollout_batch_size=8,
        batch_size=16,
    )
    work = next(iter(stage.source))
    for batch in work.micro_batches:
        logps_N = stage.step.compute(batch).logps_N.detach()
        assert torch.equal(logps_N, batch["sampled_logps_N"])


def test_a_moving_reference_is_also_the_one_that_is_measured_against():
    stage = built("tr_dpo", mixup_alpha=1.0, sync_steps=1, eval_rows=4)
    for work in list(stage.source)[:2]:
        stage.step(work.micro_batches, work.metrics)
    # the reference has just become the policy: the loss is ln 2 again
    assert measure(stage.step, stage.heldout)["eval/loss"] == pytest.approx(0.6931472, abs=1e-5)
