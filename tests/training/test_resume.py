"""A run that was stopped anywhere and goes on is the run that was not, bit for bit."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from small_groups import random_groups, scorer
from truing.config import Lora, Model
from truing.errors import NumericsError
from truing.pipeline.keeping import kept, resumed
from truing.rundir import RunDirectory
from truing.training.arrange import arrange
from truing.training.build import build
from truing.training.checkpoints import checkpoints
from truing.training.inputs import Inputs
from truing.training.loop import Progress, measure, train
from truing.training.method import resolve

TIMES = ("seconds", "timing/")
OFFLINE = {"batch_size": 4, "num_train_epochs": 2, "eval_rows": 4}
DRAWN = {
    "reward": "given",
    "num_rollouts": 3,
    "rollout_batch_size": 4,
    "batch_size": 4,
    "max_completion_length": 5,
}
CASES = {
    "sft": {"method": "sft", **OFFLINE},
    "sft, averaged": {"method": "sft", "ema_decay": 0.7, **OFFLINE},
    "sft, a step skipped": {"method": "sft", "max_nonfinite_steps": 1, **OFFLINE},
    "bco_pair, a step skipped": {"method": "bco_pair", "max_nonfinite_steps": 1, **OFFLINE},
    "bradley_terry": {"method": "bradley_terry", **OFFLINE},
    "dpo": {"method": "dpo", **OFFLINE},
    "tr_dpo": {"method": "tr_dpo", "sync_steps": 2, **OFFLINE},
    "beta_dpo": {"method": "beta_dpo", **OFFLINE},
    "bco_pair": {"method": "bco_pair", **OFFLINE},
    "kto": {"method": "kto", **OFFLINE},
    "ppo": {"method": "ppo", "num_train_epochs": 2, **DRAWN},
    "ppo, running, budget": {
        "method": "ppo",
        "num_train_epochs": 2,
        "score_normalization": "running",
        "kl_control": "budget",
        "kl_target": 2.0,
        "critic_warmup_rollouts": 1,
        "ptx_coef": 0.5,
        "demonstrations_per_step": 2,
        **DRAWN,
    },
    "ppo, stopped early": {
        "method": "ppo",
        "num_train_epochs": 3,
        "approxkl_limit": 1e-4,
        **DRAWN,
    },
    "grpo": {"method": "grpo", "num_generations": 4, **DRAWN, "batch_size": 8},
    "dapo": {"method": "dapo", "num_generations": 4, **DRAWN, "batch_size": 8},
    "online_dpo": {"method": "online_dpo", "num_generations": 4, **DRAWN, "batch_size": 2},
    "iterative_dpo": {"method": "iterative_dpo", "num_generations": 4, **DRAWN, "batch_size": 2},
}
LORAS = {"full": None, "lora": Lora(rank=4)}


@scorer
def low_bytes(completion, group):
    return sum(i < 130 for i in completion.ids) / len(completion.ids)


def made(raw, lora, samples):
    """The stage of a recipe, as it is before its first step."""
    method = resolve("stage", {"learning_rate": 1e-2, **raw}, "test")
    draws = "reward" in raw
    pairs = random_groups(1, 12, 2, pairs=True)
    rows = [] if draws else arrange(pairs, "preference", method.objective.required, 3)
    torch.manual_seed(0)
    return build(
        method,
        Inputs(
            source="random:llama",
            revision=None,
            model=Model(path="random:llama", lora=lora, dtype="float32"),
            stop_id=2,
            train=random_groups(1, 10, 0) if draws else rows,
            heldout=rows[:4],
            demonstrations=random_groups(5, 7, 1),
            reward_run=None,
            shares_trunk=False,
            reward=low_bytes,
            on_rollout=lambda index, rollout: samples.append(
                [c.ids for g in rollout.groups for c in g.completions]
            ),
            seed=3,
            where="test",
        ),
    )


def run(raw, lora, folder, stop_after=None):
    """Train into a folder from where it stands. Returns (masters, samples, where it began)."""
    samples = []
    stage, directory, progress = made(raw, lora, samples), RunDirectory(folder), Progress()
    folder.mkdir(exist_ok=True)
    if raw.get("max_nonfinite_steps"):
        poisoned(stage.step, SKIPPED)
    facts = {"fingerprint": "this"}
    begun = resumed(stage, directory, progress, facts, print)
    training = stage_training(raw)
    keeper = kept(stage, training, directory, progress, facts, lambda into, masters: None)

    def tick(number, total, metrics):
        if number == stop_after:
            raise PowerCutError

    def evaluate():
        return measure(stage.step, stage.heldout)

    heldout = evaluate if stage.heldout else None
    with suppress(PowerCutError):
        train(stage.step, stage.source, directory, tick, stage.meter, heldout, keeper, progress)
    masters = {n: p.detach().clone() for n, p in stage.step.masters.masters.items()}
    if stage.average is not None:
        masters |= {f"average {n}": p.clone() for n, p in stage.average.averages.items()}
    return masters, samples, begun


SKIPPED = 3


def poisoned(step, number):
    """One optimizer step whose loss is NaN, however often it is taken."""
    compute = step.compute

    def then(batch):
        outputs = compute(batch)
        if step.taken + 1 != number:
            return outputs
        return replace(outputs, logps_N=outputs.logps_N * math.nan)

    step.compute = then


class PowerCutError(Exception):
    """The machine goes away."""


def stage_training(raw):
    return resolve("stage", {"save_steps": 1} | raw, "test").training


def numbers(folder):
    """metrics.jsonl without what clocks say."""
    return [
        {n: v for n, v in json.loads(line).items() if not n.startswith(TIMES)}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize("lora", LORAS)
@pytest.mark.parametrize("case", CASES)
def test_stopped_at_every_step_it_ends_the_same(case, lora, tmp_path):
    raw = CASES[case]
    whole, samples, _ = run(raw, LORAS[lora], tmp_path / "whole")
    steps = numbers(tmp_path / "whole")[-1]["step"]
    assert steps >= 3
    for stop in range(1, steps):
        folder = tmp_path / f"stopped-{stop}"
        _, before, _ = run(raw, LORAS[lora], folder, stop_after=stop)
        # the checkpoint of the step that was cut off is not there: it is taken again
        masters, after, begun = run(raw, LORAS[lora], folder)
        assert (begun is None) is (stop == 1)
        for name, tensor in whole.items():
            assert torch.equal(masters[name], tensor), (stop, name)
        assert numbers(folder) == numbers(tmp_path / "whole")
        seen = before + after
        assert all(sample in seen for sample in samples)
        assert len(checkpoints(folder)) == 2


@pytest.mark.parametrize("case", ["tr_dpo", "ppo, running, budget", "online_dpo"])
def test_stopped_again_and_again_it_ends_the_same(case, tmp_path):
    raw = CASES[case]
    whole, _, _ = run(raw, None, tmp_path / "whole")
    steps = numbers(tmp_path / "whole")[-1]["step"]
    for stop in range(2, steps + 1):
        masters, _, _ = run(raw, None, tmp_path / "often", stop_after=stop)
    masters, _, _ = run(raw, None, tmp_path / "often")
    for name, tensor in whole.items():
        assert torch.equal(masters[name], tensor), name
    assert numbers(tmp_path / "often") == numbers(tmp_path / "whole")


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_the_budget_of_skipped_steps_goes_on_where_it_was(stop, tmp_path):
    """A second one that is not finite is one too many, in whichever session it comes."""
    raw = CASES["sft, a step skipped"]
    run(raw, None, tmp_path, stop_after=stop)
    stage, directory = made(raw, None, []), RunDirectory(tmp_path)
    resumed(stage, directory, Progress(), {"fingerprint": "this"}, print)
    before = [] if stop == 3 else [{"step": SKIPPED, "why": "loss is nan", "rows": [""] * 4}]
    assert stage.step.skipped == before
    poisoned(stage.step, stage.step.taken + 1)
    work = next(iter(stage.source))
    if before:
        with pytest.raises(NumericsError, match="after 1 steps that were skipped"):
            stage.step(work.micro_batches, {})
    else:
        assert stage.step(work.micro_batches, {})["skipped_steps"] == 1


def steps_kept(tmp_path, **knobs):
    folder = tmp_path / "-".join(map(str, knobs.values()))
    run(CASES["sft"] | knobs, None, folder)
    return sorted(int(path.name.partition("-")[2]) for path in checkpoints(folder))


def test_save_steps(tmp_path):
    assert steps_kept(tmp_path, save_steps=1) == [5, 6]
    assert steps_kept(tmp_path, save_steps=2) == [4, 6]
    assert steps_kept(tmp_path, save_steps=4) == [4]
    assert steps_kept(tmp_path, save_steps=None) == []


def test_save_minutes(tmp_path):
    assert steps_kept(tmp_path, save_steps=None, save_minutes=1e-9) != []
    assert steps_kept(tmp_path, save_steps=None, save_minutes=60.0) == []
    assert steps_kept(tmp_path, save_steps=None, save_minutes=None) == []


def test_save_total_limit(tmp_path):
    assert steps_kept(tmp_path, save_steps=1, save_total_limit=4) == [3, 4, 5, 6]
