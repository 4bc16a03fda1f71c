"""Disks that are full, broken or cannot be written, and checkpoints that are damaged or foreign."""

from __future__ import annotations

import json
import shutil
import signal
from functools import partial

import plants
import pytest
import torch
from harness import (
    ROWS,
    LostError,
    command,
    left_by,
    nothing_half_written,
    same,
    stage_folder,
    stopped,
    succeeded,
    truing,
    written,
)
from safetensors.torch import load_file
from storage_damage import DAMAGE
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from faults.matrix import TRAINED


@pytest.fixture(scope="session")
def halfway(tmp_path_factory):
    """stage -> an output that was killed after step 6, with two checkpoints. Never changed."""
    known = {}

    def of(stage):
        if stage not in known:
            out = tmp_path_factory.mktemp("halfway") / "out"
            known[stage] = truing(stage, out, plant=[partial(plants.kill_after_step, 6)]), out
            assert known[stage][0].code == -signal.SIGKILL
        return known[stage][1]

    return of


def newest_first(stage, out):
    found = list(stage_folder(stage, out).glob("checkpoint-*"))
    return sorted(found, key=lambda path: -int(path.name.partition("-")[2]))


FULL_DISKS = {
    "no space": partial(plants.no_space_from_step, 5),
    "limit": partial(plants.full_from_step, 5),
    "operation": partial(plants.at_operation, 75, plants.no_space),
}


def full_disks():
    """(stage, kind): one a stage on every push, and the system's own limit once."""
    for stage in TRAINED:
        for kind in FULL_DISKS:
            often = kind == "no space" or (stage, kind) == ("sft", "limit")
            yield pytest.param(stage, kind, marks=() if often else pytest.mark.full)


@pytest.mark.fault("P6")
@pytest.mark.parametrize(("stage", "kind"), list(full_disks()))
def test_a_full_disk_stops_the_run_and_loses_nothing(stage, kind, out, whole):
    full = truing(stage, out, plant=[FULL_DISKS[kind]])
    stopped(full, 6, "cannot be written", "free some space", "--resume")
    if not newest_first(stage, out):
        raise LostError("the checkpoints are gone")
    nothing_half_written(out)
    succeeded(truing(stage, out, "--resume"))
    same(stage, out, whole(stage))


@pytest.mark.fault("P6")
@pytest.mark.fault("P7")
@pytest.mark.parametrize("fails", [plants.no_space, plants.input_output_error])
@pytest.mark.parametrize("stage", ["best_of_n"])
def test_best_of_n_on_a_disk_that_fails(stage, fails, out, whole):
    failed = truing(stage, out, plant=[partial(plants.at_operation, 9, fails)])
    stopped(failed, 6, "cannot be written", "--resume")
    nothing_half_written(out)
    succeeded(truing(stage, out, "--resume"))
    same(stage, out, whole(stage))


@pytest.mark.fault("P6")
@pytest.mark.parametrize("stage", TRAINED)
def test_too_little_space_is_found_before_the_first_step(stage, out):
    refused = truing(stage, out, plant=[partial(plants.little_space, 1000)])
    stopped(refused, 6, "bytes are needed", "1,000 are free")
    assert not (stage_folder(stage, out) / "metrics.jsonl").exists()


@pytest.mark.fault("P7")
@pytest.mark.parametrize("number", [75, pytest.param(40, marks=pytest.mark.full)])
@pytest.mark.parametrize("stage", TRAINED)
def test_an_input_output_error(stage, number, out, whole):
    fault = partial(plants.at_operation, number, plants.input_output_error)
    stopped(truing(stage, out, plant=[fault]), 6, "Input/output error", "--resume")
    nothing_half_written(out)
    succeeded(truing(stage, out, "--resume"))
    same(stage, out, whole(stage))


@pytest.mark.fault("P7")
@pytest.mark.parametrize("stage", ["sft", pytest.param("ppo", marks=pytest.mark.full)])
def test_a_folder_that_vanishes_stops_the_run(stage, out):
    """Saved at once where the next checkpoint is due, or with the next line of metrics."""
    fault = partial(plants.folder_vanishes_after_step, 5, str(out))
    stopped(truing(stage, out, plant=[fault]), 6, "cannot be written")


@pytest.mark.fault("P7", "cli")
def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    """/proc: not even root makes a folder there."""
    rows = written(tmp_path / "rows.jsonl", ROWS)
    argv = ["sft", "--model", "random:llama", "--data", str(rows), "--output", "/proc/truing"]
    stopped(command(argv, tmp_path), 2, "/proc/truing", "cannot be written")


@pytest.mark.fault("P8")
@pytest.mark.parametrize(
    "kind", [k if k == "middle bit" else pytest.param(k, marks=pytest.mark.full) for k in DAMAGE]
)
@pytest.mark.parametrize("stage", TRAINED)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(stage, kind, out, whole, halfway):
    shutil.copytree(halfway(stage), out)
    newest, before, *_ = newest_first(stage, out)
    DAMAGE[kind](newest / "state" / "moments.safetensors", before / "state" / "moments.safetensors")
    said = succeeded(truing(stage, out, "--resume")).said
    assert f"{newest.name} is damaged and is not used" in said
    assert "moments.safetensors" in said
    same(stage, out, whole(stage))


@pytest.mark.fault("P9")
@pytest.mark.parametrize("stage", TRAINED)
def test_no_whole_checkpoint_is_never_a_start_from_nothing(stage, out, halfway):
    shutil.copytree(halfway(stage), out)
    for folder in newest_first(stage, out):
        (folder / "manifest.json").unlink()
    before = left_by(stage, out)
    stopped(truing(stage, out, "--resume"), 8, "none of ", "checkpoints is whole")
    assert left_by(stage, out) == before


def other_stage(stage, out, halfway):
    other = {"sft": "dpo"}.get(stage, "sft")
    return newest_first(other, halfway(other))[0], "stage"


def other_seed(stage, out, halfway):
    elsewhere = out.parent / "other" / "out"
    fault = partial(plants.kill_after_step, 6)
    elsewhere.parent.mkdir()
    truing(stage, elsewhere, "--seed", "5", plant=[fault])
    return newest_first(stage, elsewhere)[0], "seed"


def other_data(stage, out, halfway):
    elsewhere = out.parent / "other" / "out"
    elsewhere.parent.mkdir()
    rows = written(elsewhere.parent / "rows.jsonl", [*ROWS[:-1], {**ROWS[-1], "chosen": " o"}])
    truing(stage, elsewhere, data=rows, plant=[partial(plants.kill_after_step, 6)])
    return newest_first(stage, elsewhere)[0], "data"


def newer_manifest(stage, out, halfway):
    for folder in newest_first(stage, out):
        file = folder / "manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"manifest_version": 99}))
    return newest_first(stage, out)[0], "version 99"


FOREIGN = [
    other_stage,
    *(pytest.param(f, marks=pytest.mark.full) for f in (other_seed, other_data, newer_manifest)),
]


@pytest.mark.fault("P10")
@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("stage", TRAINED)
def test_a_foreign_checkpoint_is_refused_with_what_differs(stage, foreign, out, halfway):
    shutil.copytree(halfway(stage), out)
    taken, word = foreign(stage, out, halfway)
    place = newest_first(stage, out)[0]
    if taken != place:
        shutil.rmtree(place)
        shutil.copytree(taken, place)
    stopped(truing(stage, out, "--resume"), 8, word)


@pytest.mark.fault("D9")
@pytest.mark.parametrize("edit", ["other words", pytest.param("fewer", marks=pytest.mark.full)])
@pytest.mark.parametrize("stage", TRAINED)
def test_data_that_was_edited_is_refused(stage, edit, out, halfway):
    shutil.copytree(halfway(stage), out)
    rows = ROWS[:-2] if edit == "fewer" else [{**ROWS[0], "chosen": " else"}, *ROWS[1:]]
    edited = written(out.parent / "edited.jsonl", rows)
    before = left_by(stage, out)
    refused = truing(stage, out, "--resume", data=edited)
    stopped(refused, 8, "it stopped at checkpoint-", "changed: data", "truing runs rm")
    assert left_by(stage, out) == before


@pytest.mark.parametrize(
    ("stage", "auto"),
    [("ppo", AutoModelForCausalLM), ("reward", AutoModelForSequenceClassification)],
)
def test_a_checkpoint_opens_with_from_pretrained(stage, auto, halfway):
    """Its weights are the masters of that very step."""
    newest = newest_first(stage, halfway(stage))[0]
    model, report = auto.from_pretrained(newest, output_loading_info=True, dtype=torch.float32)
    assert not any(report.values()), report
    masters = load_file(newest / "state" / "masters.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    (kept,) = [tensor for key, tensor in masters.items() if key.endswith(name.partition(".")[2])]
    assert torch.equal(model.state_dict()[name], kept)
