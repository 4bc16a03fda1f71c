"""Model folders and GGUF files from elsewhere: what is refused before anything is loaded."""

from __future__ import annotations

import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from truing.errors import ModelError, UnsafeFileError
from truing.models import folders, loading, saving, tiny
from truing.storage import cache_folder


@pytest.fixture
def folder(tmp_path):
    model = loading.load_causal("random:llama", torch.float32)
    saving.save_policy(tmp_path / "model", model, tiny.byte_tokenizer(), torch.float32)
    return tmp_path / "model"


def test_a_whole_folder_passes(folder):
    folders.check_folder(folder)
    assert loading.load_causal(loading.resolve(str(folder)), torch.float32)
    assert loading.load_tokenizer(str(folder))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_code_of_its_own_is_refused_unread(folder, file, monkeypatch):
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    (folder / "model.safetensors").write_bytes(b"")  # nobody looks
    with pytest.raises(UnsafeFileError, match="auto_map") as caught:
        loading.resolve(str(folder))
    assert caught.value.where == str(folder / file)
    assert "not even at a pinned revision" in caught.value.remedy


def test_code_is_also_refused_where_there_is_no_folder_to_look_into(folder):
    """As for a hub id: configuration and tokenizer are looked at once they are there."""
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsafeFileError, match="auto_map"):
        loading.positions(str(folder))
    with pytest.raises(UnsafeFileError, match="auto_map"):
        loading.load_tokenizer(str(folder))


def test_links_lead_nowhere_else(folder, tmp_path):
    weights = folder / "model.safetensors"
    weights.rename(folder / "weights")
    weights.symlink_to("weights")  # inside
    folders.check_folder(folder)
    weights.unlink()
    shutil.copy(folder / "weights", tmp_path / "secret")
    weights.symlink_to("../secret")
    with pytest.raises(ModelError, match="leads out of the folder"):
        folders.check_folder(folder)
    weights.unlink()
    (folder / "weights").rename(weights)
    (tmp_path / "templates").mkdir()
    (folder / folders.TEMPLATES).symlink_to(tmp_path / "templates")
    with pytest.raises(ModelError, match="leads out of the folder"):
        folders.check_folder(folder)


def test_a_folder_reached_by_a_link_is_that_folder(folder, tmp_path):
    (tmp_path / "short").symlink_to(folder)
    folders.check_folder(tmp_path / "short")


def test_the_hub_cache_links_to_its_own_files_only(folder, tmp_path):
    """models--org--name/snapshots/REVISION/file -> ../../blobs/DIGEST"""
    home = tmp_path / "models--org--name"
    snapshot = home / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, home / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    folders.check_folder(snapshot)
    (tmp_path / "models--other").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "models--other")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../../models--other/config.json")
    with pytest.raises(ModelError, match="leads out of the folder"):
        folders.check_folder(snapshot)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 100_000_000) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 62)
        + b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}',
    ],
)
def test_headers_that_are_none(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read"):
        loading.resolve(str(folder))


@pytest.mark.parametrize("index", ['{"weight_map": {"a": 1}}', "{}", "[]", "{", "[" * 100_000])
def test_an_index_that_is_none(folder, index):
    (folder / folders.INDEX).write_text(index)
    with pytest.raises(ModelError):
        loading.resolve(str(folder))


def test_an_index_names_files_of_its_folder(folder, tmp_path):
    shutil.copy(folder / "model.safetensors", tmp_path)
    (folder / folders.INDEX).write_text('{"weight_map": {"a": "../model.safetensors"}}')
    with pytest.raises(ModelError, match="outside of the folder"):
        loading.resolve(str(folder))


GGUF = b"GGUF" + struct.pack("<I", 3)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"hello world",
        GGUF + struct.pack("<QQ", 0, 0) + b"\0" * 64,
        GGUF + struct.pack("<QQ", 1 << 60, 1 << 60),
        GGUF + struct.pack("<QQQ", 1, 1, 1 << 62) + b"abc",
        GGUF + struct.pack("<QQ", 0, 1 << 40) + b"\0" * 4096,
    ],
)
def test_a_gguf_file_that_is_none(tmp_path, content):
    pytest.importorskip("gguf")
    (tmp_path / "policy.gguf").write_bytes(content)
    with pytest.raises(ModelError, match="GGUF file cannot be read"):
        loading.resolve(str(tmp_path / "policy.gguf"))
    assert not [p for p in cache_folder().glob("*") if p.is_dir()]  # no half conversion


def test_a_scorer_with_a_misshapen_head_is_not_made_up(folder, tmp_path):
    from truing.models.heads import new_score_head

    model = loading.load_causal(str(folder), torch.float32)
    tokenizer = tiny.byte_tokenizer()
    reward = tmp_path / "reward"
    saving.save_scorer(reward, model, new_score_head(64, 3), tokenizer, 2, torch.float32)
    assert loading.load_scorer(str(reward), torch.float32)
    tensors = load_file(reward / "model.safetensors")
    tensors["score.weight"] = torch.zeros(1, 3)
    save_file(tensors, reward / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"another shape .* score\.weight"):
        loading.load_scorer(str(reward), torch.float32)


def test_a_tokenizer_with_ids_behind_the_embeddings(folder):
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<|new pad|>"})
    tokenizer.save_pretrained(folder)
    assert len(loading.load_tokenizer(str(folder))) == 260  # padding alone: no text becomes that
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"1 tokens beyond .* of 259, .*'new'"):
        loading.load_tokenizer(str(folder))
