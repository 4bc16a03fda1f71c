"""Right parts, rightly put together: temperatures, seeds, contracts, who moves and who reads."""

from __future__ import annotations

import pytest
import test_step
import torch
from test_step import built

from truing.errors import NumericsError
from truing.rollouts.collect import Rollout
from truing.training.loop import measure
from truing.training.sources import OnPolicy


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_sampler_and_trainer_work_at_the_same_temperature(temperature):
    stage = built("ppo", temperature=temperature)
    with torch.no_grad():  # a policy with opinions
        stage.roles.policy.vocabulary_weight.mul_(3)
    work = next(iter(stage.source))
    assert work.metrics["sampling/logp_difference_max"] < 1e-3
    stage.roles.temperature = 1.0
    for batch in work.micro_batches:
        plain = stage.roles.outputs(batch, "policy").logps_N
        assert (plain - batch["sampled_logps_N"]).abs().max() > 0.1


def test_a_rollout_far_from_its_reference_is_refused_before_the_first_update():
    stage = built("ppo")
    with torch.no_grad():
        for parameter in stage.roles.reference_copy.parameters():
            parameter.mul_(1.5)
    work = next(iter(stage.source))
    with pytest.raises(NumericsError, match="objective/kl"):
        stage.step(work.micro_batches, work.metrics)


def test_every_rollout_has_noise_of_its_own_and_a_run_repeats_it():
    class Collects:
        batch_size = 4

        def collect(self, prompts, seed, more):
            seeds.append(seed)
            return Rollout([[]], {}, [])

    runs = []
    for _ in range(2):
        seeds = []
        source = OnPolicy(list(range(8)), Collects(), lambda i, r: None, 4, 1, 5, 1, seed=3)
        list(source)
        runs.append(seeds)
    assert len(set(runs[0])) == 5
    assert runs[0] == runs[1]


def test_the_reference_follows_every_sync_steps_and_stands_between(monkeypatch):
    monkeypatch.setitem(test_step.STAGES, "tr_dpo", {"sync_steps": 2, "mixup_alpha": 0.5})
    stage = built("tr_dpo", warmup_ratio=0.0, num_train_epochs=2)
    weight = next(p for p in stage.roles.reference_copy.parameters() if p.ndim == 2)
    moved = []
    for work in stage.source:
        before = weight.detach().clone()
        stage.step(work.micro_batches, work.metrics)
        moved.append(not torch.equal(weight, before))
    assert moved == [False, True, False, True]


def test_measuring_leaves_what_is_carried_alone(monkeypatch):
    monkeypatch.setitem(test_step.STAGES, "bco_pair", {})
    stage = built("bco_pair")
    work = next(iter(stage.source))
    measure(stage.step, work.micro_batches)
    assert stage.step.carried == {}
    stage.step(work.micro_batches, work.metrics)
    kept = dict(stage.step.carried)
    measure(stage.step, work.micro_batches)
    assert stage.step.carried == kept
    assert kept != {}
