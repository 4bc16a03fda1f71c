"""The cache of converted GGUF files: whole or not there, and never another model's."""

from __future__ import annotations

import stat
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from truing.errors import ModelError, ResourceError
from truing.models import gguf, loading, tiny
from truing.storage import cache_folder


@pytest.fixture
def read(monkeypatch):
    """In place of the parser: a tiny model whose bias is in the file; the files that were read."""
    files = []

    def stand_in(file):
        files.append(file)
        model = loading.load_causal("random:llama", torch.float32)
        with torch.no_grad():
            model.model.norm.weight.fill_(file.read_bytes()[0])
        return tiny.byte_tokenizer(), model

    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(gguf, "_read_gguf", stand_in)
    return files


@pytest.fixture
def file(tmp_path):
    (tmp_path / "policy.gguf").write_bytes(b"\x02")
    return tmp_path / "policy.gguf"


def norm_of(folder):
    return load_file(folder / "model.safetensors")["model.norm.weight"].unique().tolist()


def test_a_file_is_converted_once_and_opens(file, read):
    folder = gguf.converted(file)
    assert gguf.converted(file) == folder
    assert len(read) == 1
    model = loading.load_causal(loading.resolve(str(file)), torch.float32)
    assert model.model.norm.weight.unique().tolist() == [2.0]
    assert folder.parent == cache_folder()


def test_files_of_one_name_and_size_are_two_models(tmp_path, file, read):
    (tmp_path / "b").mkdir()
    other = tmp_path / "b" / "policy.gguf"
    other.write_bytes(b"\x03")
    assert [norm_of(gguf.converted(f)) for f in (file, other, file)] == [[2.0], [3.0], [2.0]]


@pytest.mark.parametrize("how", ["bit", "cut", "zeros", "gone", "no manifest"])
def test_a_damaged_conversion_is_made_again(how, file, read):
    """A power cut may leave the name of a folder and not what was written into it."""
    folder = gguf.converted(file)
    weights = folder / "model.safetensors"
    honest = weights.read_bytes()
    if how == "bit":
        weights.write_bytes(honest[:-2] + bytes([honest[-2] ^ 64, honest[-1]]))
    elif how == "cut":
        weights.write_bytes(honest[:-4])
    elif how == "zeros":
        weights.write_bytes(honest[:-4096] + bytes(4096))
    elif how == "gone":
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "manifest.json").unlink()
    assert gguf.converted(file) == folder
    assert len(read) == 2
    assert weights.read_bytes() == honest
    assert loading.load_tokenizer(str(folder))


def test_what_a_killed_conversion_left_goes_and_is_never_taken(file, read):
    half = cache_folder() / f".{gguf.folder_of(file).name}.4711.partial"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    assert norm_of(gguf.converted(file)) == [2.0]
    assert not half.exists()


def test_two_at_once_convert_once(file, read, monkeypatch):
    convert, folders = gguf._convert, []

    def slowly(file, folder):
        time.sleep(0.3)
        return convert(file, folder)

    monkeypatch.setattr(gguf, "_convert", slowly)
    both = [threading.Thread(target=lambda: folders.append(gguf.converted(file))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(folders) == 2
    assert len(read) == 1


def test_a_whole_one_is_read_where_nothing_can_be_written(file, read):
    folder = gguf.converted(file)
    for lock in cache_folder().glob(".*.lock"):
        lock.unlink()
    assert gguf.converted(file) == folder
    assert not list(cache_folder().glob(".*.lock"))


def test_a_cache_that_cannot_be_written_is_said(file, read, monkeypatch):
    monkeypatch.setenv("TRUING_CACHE", str(file))
    with pytest.raises(ResourceError, match="cannot be written"):
        gguf.converted(file)


def test_without_the_reader_it_says_what_to_install(file, monkeypatch):
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs the gguf package"):
        gguf.converted(file)


def test_whoever_may_read_the_folder_may_read_the_weights(file, read):
    """safetensors 0.8 writes for the owner alone."""
    folder = gguf.converted(file)
    modes = {p.name: oct(stat.S_IMODE(p.stat().st_mode)) for p in folder.iterdir()}
    assert set(modes.values()) == {oct(stat.S_IMODE(folder.stat().st_mode) & 0o666)}, modes
