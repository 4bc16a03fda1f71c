"""Cached reference log-probs: the same training, computed once, and never another model's."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import test_step
import torch
from safetensors.torch import load_file, save_file
from test_step import LORAS, built

from small_groups import random_groups
from truing.data.packing import micro_batches
from truing.errors import UsageError
from truing.models.roles import Roles
from truing.storage import cache_folder
from truing.training import reference_cache
from truing.training.loop import measure
from truing.training.reference_cache import cache_key

BUDGET = 60
"""Tokens of a micro-batch: several a step."""


def cached(lora=None, dtype="float32", **knobs):
    return built("dpo", lora, dtype, micro_batch_tokens=BUDGET, reference_logps="cached", **knobs)


def kept_file():
    (file,) = (cache_folder() / "reference-logps").glob("*.safetensors")
    return file


def trained(stage):
    """The metrics of every step."""
    return [stage.step(work.micro_batches, work.metrics) for work in stage.source]


@pytest.fixture
def passes(monkeypatch):
    """Counts the reference's passes over micro-batches before training."""
    seen = []
    honest = reference_cache._starting_logps

    def spy(roles, batch):
        seen.append(batch.size_C)
        return honest(roles, batch)

    monkeypatch.setattr(reference_cache, "_starting_logps", spy)
    return seen


@pytest.mark.parametrize("lora", LORAS)
def test_training_is_that_of_a_reference_computed_with_each_batch(lora):
    knobs = {"num_train_epochs": 3, "eval_rows": 5}
    torch.manual_seed(0)  # adapters start at random
    online = built("dpo", LORAS[lora], micro_batch_tokens=BUDGET, **knobs)
    torch.manual_seed(0)
    once = cached(LORAS[lora], **knobs)
    assert measure(once.step, once.heldout) == pytest.approx(
        measure(online.step, online.heldout), abs=1e-6
    )
    for expected, found in zip(trained(online), trained(once), strict=True):
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)
    for name, weight in online.step.masters.masters.items():
        torch.testing.assert_close(once.step.masters.masters[name], weight, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", LORAS)
def test_the_first_log_ratio_is_exactly_zero(lora, dtype, monkeypatch):
    """Also from a file that an earlier run left, with another learning rate and beta."""
    cached(LORAS[lora], dtype)
    stage = cached(LORAS[lora], dtype, learning_rate=1e-4, beta=0.7)
    work = next(iter(stage.source))
    assert len(work.micro_batches) > 1
    for batch in work.micro_batches:
        own_N = stage.roles.outputs(batch, "policy").logps_N
        assert torch.equal(own_N, batch["reference_logps_N"])


def test_no_copy_of_the_reference_is_loaded():
    assert built("dpo").roles.copies == 2
    first, second = cached(), cached()
    assert first.roles.copies == second.roles.copies == 1
    trained(second)
    assert "reference" not in second.meter.work


def test_it_is_computed_once_for_all_epochs_and_runs(passes):
    stage = cached(num_train_epochs=2)
    assert sum(passes) == 2 * 16  # 16 pairs, held-out rows are not measured
    assert stage.notes[0].startswith("reference log-probs of 16 groups computed once")
    trained(stage)
    del passes[:]
    again = cached(num_train_epochs=2)
    assert passes == []
    assert again.notes == [f"reference log-probs read from {kept_file()}"]


def test_what_was_computed_in_halves_is_not_cached(monkeypatch):
    """Its last bits are others: a run with more memory must not find them."""
    online = [line["loss"] for line in trained(built("dpo", micro_batch_tokens=BUDGET))]
    honest = reference_cache._starting_logps

    def small(roles, batch):
        if batch.size_G > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(roles, batch)

    monkeypatch.setattr(reference_cache, "_starting_logps", small)
    stage = cached()
    assert "computed in halves" in stage.notes[0]
    assert stage.notes[1] == "reference log-probs of 16 groups computed once"
    assert not list((cache_folder() / "reference-logps").glob("*"))
    assert [line["loss"] for line in trained(stage)] == pytest.approx(online, abs=1e-5)


def test_only_rows_that_are_reached_are_computed(passes):
    cached(max_steps=1)
    assert sum(passes) == 2 * 8


def test_adapters_and_full_fine_tuning_have_the_same_reference(passes):
    cached()
    del passes[:]
    cached(LORAS["lora"])
    assert passes == []


def corrupt(file, how):
    logps = load_file(file)["logps"].clone()
    with reference_cache.safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-5])
    elif how == "text":
        file.write_text("no safetensors")
    elif how == "short":
        save_file({"logps": logps[:-1].clone()}, file, metadata=header)
    elif how == "nan":
        save_file({"logps": logps * torch.nan}, file, metadata=header)
    elif how == "half":
        save_file({"logps": logps.half()}, file, metadata=header)
    elif how == "bit":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif how == "other name":
        save_file({"logits": logps}, file, metadata=header)
    elif how == "other key":
        other = logps + 1
        own = {"key": "0" * 64, "sha256": hashlib.sha256(other.numpy().tobytes()).hexdigest()}
        save_file({"logps": other}, file, metadata=own)
    elif how == "no key":
        save_file({"logps": logps + 1}, file)


@pytest.mark.parametrize(
    "how", ["cut", "text", "short", "nan", "half", "bit", "other name", "other key", "no key"]
)
def test_a_file_that_is_not_what_its_name_says_is_computed_anew(how, passes):
    cached()
    file = kept_file()
    honest = load_file(file)["logps"].clone()  # the file is mapped, and will be written over
    corrupt(file, how)
    del passes[:]
    stage = cached()
    assert sum(passes) == 32
    assert "what was there is not used" in stage.notes[0]
    assert torch.equal(load_file(kept_file())["logps"], honest)
    cached()
    assert sum(passes) == 32


class TestKey:
    """Whatever changes the log-probs changes the key; nothing else does."""

    groups = random_groups(1, 6, 2, pairs=True)

    def key(self, stage, groups=None, temperature=1.0, budget=BUDGET):
        return cache_key(
            micro_batches(groups or self.groups, budget), stage.roles.policy, temperature
        )

    def test_the_same_again_and_with_adapters(self):
        plain = self.key(built("dpo"))
        assert plain == self.key(built("dpo", learning_rate=1e-5))
        assert plain == self.key(built("dpo", LORAS["lora"]))
        trains_adapters = built("dpo", LORAS["lora"])
        trained(trains_adapters)
        assert plain == self.key(trains_adapters)

    def test_weights_precision_temperature_and_configuration(self):
        stage = built("dpo")
        keys = {self.key(stage), self.key(stage, temperature=0.5)}
        keys.add(self.key(built("dpo", dtype="bfloat16")))
        with torch.no_grad():
            stage.roles.policy.trunk.layers[1].mlp.up_proj.weight[3, 5] += 1e-6
        keys.add(self.key(stage))
        stage.roles.policy.base.config.rms_norm_eps = 1e-3
        keys.add(self.key(stage))
        assert len(keys) == 5

    def test_token_ids_and_what_is_computed_together(self, monkeypatch):
        stage = built("dpo")
        first, *rest = self.groups
        answers = (first.completions[0], replace(first.completions[1], ids=(9, 2)))
        changed = [
            self.groups,
            [replace(first, completions=answers), *rest],
            [replace(first, prompt_ids=(*first.prompt_ids, 7)), *rest],
            rest,
        ]
        keys = {self.key(stage, groups) for groups in changed}
        keys.add(self.key(stage, budget=10_000))
        monkeypatch.setattr(reference_cache, "FORWARD_VERSION", -1)
        keys.add(self.key(stage))
        assert len(keys) == 6

    def test_a_choice_is_not_in_it(self):
        swapped = [replace(g, chosen=1, rejected=0) for g in self.groups]
        assert self.key(built("dpo")) == self.key(built("dpo"), swapped)


def test_a_moving_or_absent_reference_cannot_be_cached(monkeypatch):
    monkeypatch.setitem(test_step.STAGES, "simpo", {})
    for method, why in (("tr_dpo", "moves its reference"), ("simpo", "reads no reference")):
        with pytest.raises(UsageError, match=why) as caught:
            built(method, reference_logps="cached")
        assert caught.value.remedy
    with pytest.raises(UsageError, match="unknown key"):
        built("ppo", reference_logps="cached")


def test_groups_are_found_by_identity_not_by_place():
    stage = cached(num_train_epochs=2)
    kept = stage.source.complete.cached
    assert isinstance(stage.roles, Roles)
    second = [
        part for groups in stage.source.loader.epoch(1) for part in stage.source.parts(groups)
    ]
    assert second != stage.source.first_epoch()
    for part in second:
        (batch,) = stage.source.batches(part)
        assert torch.equal(batch["reference_logps_N"], kept.of(part))
        own_N = stage.roles.outputs(batch, "policy").logps_N
        torch.testing.assert_close(batch["reference_logps_N"], own_N, atol=1e-5, rtol=0)
