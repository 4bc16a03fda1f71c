"""A save that is stopped at any operation, by anything: what was saved before is there, whole."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
import torch
from disks import BadDisk, CountedDisk, FullDisk, KilledDisk
from safetensors.torch import load_file, save_file
from storage_damage import DAMAGE, flip

from truing import training
from truing.errors import CheckpointError, ResourceError
from truing.rundir import checkpoints
from truing.storage import MANIFEST_FILE, files_of, read_manifest
from truing.training.checkpoints import State, load_state, newest, save_checkpoint

FACTS = {"fingerprint": "this"}


def state(step):
    """One that differs in every byte that counts from that of another step."""
    numbers = {"step": step, "words": list(range(step, step + 50))}
    weights = torch.arange(300.0) * step
    return State(numbers, {"masters": {"w": weights}, "moments": {"m": weights + 1}})


def export(folder):
    (folder / "config.json").write_text('{"model_type": "llama"}')


def save(run, step, disk=None):
    more = {} if disk is None else {"disk": disk}
    return save_checkpoint(run, step, state(step), export, FACTS, keep=2, **more)


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints, of which a third save removes the first."""
    for step in (1, 2):
        save(tmp_path / "run", step) if (tmp_path / "run").exists() else (
            (tmp_path / "run").mkdir(),
            save(tmp_path / "run", step),
        )
    return tmp_path / "run"


def found(run):
    """The step a reader goes on from, after checking that all of it is what was saved."""
    folder = newest(run, FACTS, lambda line: None)
    assert folder is not None
    read = load_state(folder)
    step = read.numbers["step"]
    assert folder.name == f"checkpoint-{step}"
    assert read.numbers == state(step).numbers
    for part, tensors in state(step).tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(read.tensors[part][name], tensor)
    return step


def operations(run):
    """How many there are in one save."""
    copy = run.parent / "counted"
    shutil.copytree(run, copy)
    disk = CountedDisk()
    save(copy, 3, disk)
    shutil.rmtree(copy)
    return disk


def test_a_save_is_read_back_and_the_oldest_goes(run):
    save(run, 3)
    assert [folder.name for folder in checkpoints(run)] == ["checkpoint-3", "checkpoint-2"]
    assert found(run) == 3


def test_ten_is_newer_than_nine(run):
    for step in (9, 10, 11):
        save(run, step)
    assert [folder.name for folder in checkpoints(run)] == ["checkpoint-11", "checkpoint-10"]


def test_killed_at_every_operation(run):
    """SIGKILL in a process of its own: before, in the middle of and after every operation."""
    total = operations(run).count
    assert total >= 15
    for stop in range(total):
        copy = run.parent / f"killed-{stop}"
        shutil.copytree(run, copy)
        child = os.fork()
        if not child:
            save(copy, 3, KilledDisk(stop))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"fault {stop} did not fire"
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert found(copy) in (2, 3)
        save(copy, 4)  # it goes on from there, and what lay around is gone
        assert found(copy) == 4
        assert not list(copy.glob(".*"))


def first(of):
    """Where a safetensors header says it."""
    return lambda path: path.read_bytes().index(of) + 1


FLIPS = [("write", file, lambda path: -1) for file in ("numbers.json", MANIFEST_FILE)] + [
    (operation, "masters.safetensors", place)
    for operation in ("write_by", "sync_file")
    for place in (lambda path: -1, lambda path: 8, first(b'"w"'), first(b"[300]"))
]


@pytest.mark.parametrize(("operation", "file", "place"), FLIPS)
def test_what_is_read_back_as_something_else_is_not_kept(run, operation, file, place):
    """A bit that the disk changed on its way: the oldest checkpoint is not removed for it."""

    class Flipping(CountedDisk):
        def done(self, by, path):
            if by == operation and path.name == file:
                self.fired = True
                flip(path, place(path))

        def write(self, path, content):
            super().write(path, content)
            self.done("write", path)

        def write_by(self, write, path):
            write(path)
            self.done("write_by", path)

        def sync_file(self, path):
            super().sync_file(path)
            self.done("sync_file", path)

    disk = Flipping()
    with pytest.raises(ResourceError, match="read back is something else"):
        save(run, 3, disk)
    assert disk.fired
    assert [folder.name for folder in checkpoints(run)] == ["checkpoint-2", "checkpoint-1"]
    assert not list(run.glob(".*"))


OTHERS = {
    "shape": lambda tensors: {n: t.reshape(-1, 10) for n, t in tensors.items()},
    "precision": lambda tensors: {n: t.view(torch.int32) for n, t in tensors.items()},
    "more": lambda tensors: tensors | {"more": torch.ones(1)},
}


@pytest.mark.parametrize("what", OTHERS)
def test_the_same_bytes_of_something_else_are_not_kept(run, what):
    class Changing(CountedDisk):
        def write_by(self, write, path):
            write(path)
            save_file(OTHERS[what](load_file(path)), path)

    with pytest.raises(ResourceError, match="read back is something else"):
        save(run, 3, Changing())
    assert [folder.name for folder in checkpoints(run)] == ["checkpoint-2", "checkpoint-1"]


def test_parts_of_any_size_are_read_as_they_were(run, monkeypatch):
    monkeypatch.setattr(training.checkpoints, "SHARD", 500)
    tensors = {f"{n}": torch.full((n, 30), float(n)) for n in (1, 2, 5, 9)} | {"0": torch.ones(())}
    parts = {"masters": tensors, "moments": {}, "carried": {"w": torch.full((9,), torch.nan)}}
    large = State({}, parts)
    folder = save_checkpoint(run, 3, large, export, FACTS, keep=2)
    assert len(list(folder.glob("state/masters-*.safetensors"))) > 2
    read = load_state(folder)
    assert read.tensors.keys() == large.tensors.keys()
    for part, tensors in large.tensors.items():
        assert read.tensors[part].keys() == tensors.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(read.tensors[part][name], tensor, equal_nan=True)


@pytest.mark.parametrize("kind", [FullDisk, BadDisk])
def test_a_disk_that_fails_at_any_operation(run, kind):
    total = operations(run).count
    fired = 0
    for stop in range(total):
        copy = run.parent / f"{kind.__name__}-{stop}"
        shutil.copytree(run, copy)
        disk = kind(stop)
        raised = None
        try:
            save(copy, 3, disk)
        except (ResourceError, OSError) as error:
            raised = error
        if isinstance(raised, ResourceError):
            assert raised.exit_code == 6
            assert "was saved before is untouched" in raised.remedy
        elif raised is not None:
            assert found(copy) == 3  # only the removal of the oldest was left
        assert disk.fired is (raised is not None)
        fired += disk.fired
        assert found(copy) in (2, 3)
        assert not list(copy.glob(".*partial"))
    assert fired >= total - 3 or kind is FullDisk


def after_power_cut(log, stop, keep_names):
    """Make the folder what a disk may hold: content that was not synced is gone; names that were
    not synced (`keep_names` false) are as they were."""
    done = log[:stop]
    synced = {path for operation, path, _ in done if operation == "sync"}
    wrote = {path for operation, path, _ in done if operation in ("open", "write")}
    renames = [(old, new) for operation, old, new in done if operation == "rename"]
    settled = {path for operation, path, _ in done if operation == "sync folder"}
    made = [path for _, path, _ in done if ".partial" in path.name]
    wrote |= {path for folder in made for path in files_of(folder)}  # by others: what is exported
    wrote |= {old / p.relative_to(new) for old, new in renames for p in files_of(new)}
    for path in wrote - synced:
        now = path
        for old, new in renames:
            if old in path.parents:
                now = new / path.relative_to(old)
        if now.exists():
            now.write_bytes(b"")
    for old, new in reversed(renames):
        if not keep_names and new.parent not in settled and new.exists():
            new.rename(old)


@pytest.mark.parametrize("keep_names", [True, False])
def test_a_power_cut_after_any_operation(run, keep_names):
    class Cut(CountedDisk):
        def at(self, operation, path):
            raise KeyboardInterrupt

    total = operations(run).count
    for stop in range(total):
        copy = run.parent / f"cut-{stop}"
        shutil.copytree(run, copy)
        disk = Cut(stop)
        with pytest.raises(KeyboardInterrupt):
            save(copy, 3, disk)
        after_power_cut(disk.log, stop, keep_names)
        assert found(copy) in (2, 3)


def test_a_save_that_has_returned_is_there_after_a_power_cut(run):
    """Acknowledged is acknowledged: with all that was not synced lost."""
    disk = CountedDisk()
    save(run, 3, disk)
    after_power_cut(disk.log, disk.count, keep_names=False)
    assert found(run) == 3


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(run, kind):
    files = [p.relative_to(run) for p in (run / "checkpoint-2").rglob("*") if p.is_file()]
    assert len(files) >= 5
    for file in files:
        copy = run.parent / "damaged"
        shutil.copytree(run, copy)
        before = (copy / file).read_bytes()
        DAMAGE[kind](copy / file, copy / "checkpoint-1" / file.relative_to("checkpoint-2"))
        if (copy / file).exists() and (copy / file).read_bytes() == before:
            shutil.rmtree(copy)
            continue  # the same file in both steps
        said = []
        folder = newest(copy, FACTS, said.append)
        assert folder.name == "checkpoint-1"
        assert "checkpoint-2 is damaged" in said[0]
        assert found(copy) == 1
        assert [folder.name for folder in checkpoints(copy)] == ["checkpoint-1"]
        shutil.rmtree(copy)


def test_nothing_whole_is_never_a_silent_start_from_nothing(run):
    for folder in checkpoints(run):
        (folder / MANIFEST_FILE).unlink()
    with pytest.raises(CheckpointError, match="none of 2 checkpoints is whole") as caught:
        newest(run, FACTS, lambda line: None)
    assert len(checkpoints(run)) == 2  # someone may want to look at them
    assert caught.value.exit_code == 8
    assert newest(run.parent / "never", FACTS, print) is None


def test_a_checkpoint_of_another_run_is_refused(run):
    with pytest.raises(CheckpointError, match="fingerprint 'this', this run has 'other'"):
        newest(run, {"fingerprint": "other"}, print)


def test_a_newer_schema_is_refused_and_not_taken_for_damage(run):
    place = run / "checkpoint-2" / MANIFEST_FILE
    place.write_text(place.read_text().replace('"manifest_version": 1', '"manifest_version": 2'))
    with pytest.raises(CheckpointError, match="version 2"):
        read_manifest(run / "checkpoint-2")


def test_too_little_space_is_said_before_anything_is_written(run):
    class Small(CountedDisk):
        def free_bytes(self, path):
            return 100

    disk = Small()
    with pytest.raises(ResourceError, match="bytes are needed, 100 are free"):
        save(run, 3, disk)
    assert disk.count == 0
    assert found(run) == 2
