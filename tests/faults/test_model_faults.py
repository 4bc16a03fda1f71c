"""Model folders as strangers make them: weights missing, extra, misshapen or cut, code of their
own, links and shards that lead elsewhere, another vocabulary."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from unittest import mock

import pytest
import torch
from harness import STAGES, SilentError, stage_folder, stopped, succeeded, truing
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from faults.matrix import EVERY, SAMPLING
from truing.models import loading, saving
from truing.models.heads import new_score_head

END_ID = 2
DOWN = "model.layers.1.mlp.down_proj.weight"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def model(plain_model, out) -> Path:
    """A copy to break."""
    shutil.copytree(plain_model, out.parent / "model")
    return out.parent / "model"


def rewritten(model: Path, change) -> None:
    """The weights with `change` made to them."""
    tensors = load_file(model / WEIGHTS)
    change(tensors)
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})


def configured(model: Path, file: str = "config.json", **values) -> None:
    """Another value in a configuration."""
    config = json.loads((model / file).read_text())
    (model / file).write_text(json.dumps(config | values))


def sharded(model: Path, **names: str) -> None:
    """The weights as one shard and its index, which names other files for some."""
    (model / WEIGHTS).rename(model / "shard.safetensors")
    shards = dict.fromkeys(load_file(model / "shard.safetensors"), "shard.safetensors")
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shards | names}))


def to_scorer(model: Path, destination: Path) -> Path:
    """The model with a score head, as a reward model is saved."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    trunk = loading.load_causal(str(model), torch.float32)
    head = new_score_head(trunk.config.hidden_size, seed=3)
    saving.save_scorer(destination, trunk, head, tokenizer, END_ID, torch.float32)
    return destination


def scored_by(stage: str, folder: Path, model: Path, reward: Path, **more):
    """A run of a stage that samples, scored by a reward model's folder."""
    flags = [str(reward) if flag == "character_share" else flag for flag in STAGES[stage]]
    with mock.patch.dict(STAGES, {stage: flags}):
        return truing(stage, folder, model=str(model), **more)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def absurd(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


WRONG = {
    "missing": (
        lambda m: rewritten(m, lambda t: t.pop(DOWN)),
        f"1 weights that the files have not, such as {DOWN}",
    ),
    "extra": (
        lambda m: rewritten(m, lambda t: t.update({DOWN.replace("1", "2"): t[DOWN].clone()})),
        "no place for, such as model.layers.2.mlp.down_proj.weight",
    ),
    "misshapen": (
        lambda m: rewritten(m, lambda t: t.update({DOWN: torch.zeros(3, 4)})),
        f"another shape than the config says, such as {DOWN}",
    ),
    "no_embeddings": (
        lambda m: rewritten(m, lambda t: t.pop("model.embed_tokens.weight")),
        "weights that the files have not",
    ),
    "more_layers": (
        lambda m: configured(m, num_hidden_layers=3),
        "weights that the files have not",
    ),
    "fewer_layers": (lambda m: configured(m, num_hidden_layers=1), "no place for"),
    "wider": (lambda m: configured(m, intermediate_size=256), "another shape"),
    "cut": (lambda m: cut(m / WEIGHTS), "cannot be read"),
    "empty": (lambda m: (m / WEIGHTS).write_bytes(b""), "cannot be read"),
    "absurd_header": (lambda m: absurd(m / WEIGHTS), "cannot be read"),
    "missing_shard": (lambda m: sharded(m, **{DOWN: "other.safetensors"}), "is not there"),
    "shard_elsewhere": (lambda m: sharded(m, **{DOWN: f"../{WEIGHTS}"}), "outside of the folder"),
    "index_of_nothing": (lambda m: (m / INDEX).write_text("[]"), "no JSON object"),
    "half_a_config": (lambda m: cut(m / "config.json"), "cannot be read"),
    "half_a_tokenizer": (lambda m: cut(m / "tokenizer.json"), "no tokenizer"),
    "model_with_code": (
        lambda m: configured(m, auto_map={"AutoModelForCausalLM": "evil.Model"}),
        "auto_map",
    ),
    "tokenizer_with_code": (
        lambda m: configured(
            m, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}
        ),
        "auto_map",
    ),
    "a_link_out": (lambda m: linked_out(m), "a link that leads out of the folder"),
}


def linked_out(model: Path) -> None:
    (model / WEIGHTS).rename(model.parent / "elsewhere")
    (model / WEIGHTS).symlink_to(model.parent / "elsewhere")


@pytest.mark.fault("T7")
@pytest.mark.parametrize(
    "fault",
    ["missing", *(pytest.param(name, marks=pytest.mark.full) for name in list(WRONG)[1:])],
)
@pytest.mark.parametrize("stage", EVERY)
def test_a_folder_that_is_not_the_whole_model(stage, fault, out, model):
    change, said = WRONG[fault]
    (model / "evil.py").write_text("open('ran', 'w')")
    change(model)
    stopped(truing(stage, out, model=str(model)), 4, said, str(model))
    assert not list(out.parent.rglob("ran"))
    assert not list(out.rglob("*.safetensors"))


@pytest.mark.fault("T7")
@pytest.mark.full
@pytest.mark.parametrize("stage", EVERY)
def test_a_reward_model_is_no_policy(stage, out, model):
    reward = to_scorer(model, out.parent / "reward")
    stopped(truing(stage, out, model=str(reward)), 4, "no place for, such as score.weight")


@pytest.mark.fault("T7")
@pytest.mark.full
@pytest.mark.parametrize("stage", SAMPLING)
def test_a_language_model_is_no_reward_model(stage, out, model):
    stopped(scored_by(stage, out, model, model), 4, "it would be random")


@pytest.mark.full
def test_tied_weights_and_shards_are_no_difference(out, model):
    """The plain model is tied: its head is not in the file."""
    sharded(model)
    succeeded(truing("sft", out, model=str(model)))


@pytest.mark.fault("T3")
@pytest.mark.parametrize("stage", ["dpo", *SAMPLING])
def test_a_tokenizer_of_another_model(stage, out, model):
    """Its ids would be looked up behind the end of the embeddings."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["wholly", "new"])
    tokenizer.save_pretrained(model)
    stopped(truing(stage, out, model=str(model)), 4, "2 tokens beyond", "'wholly'", str(model))


@pytest.mark.fault("T3")
@pytest.mark.full
@pytest.mark.parametrize("stage", ["dpo", *SAMPLING])
def test_only_padding_may_lie_beyond_the_embeddings(stage, out, model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"pad_token": "<|new pad|>"})
    tokenizer.save_pretrained(model)
    succeeded(truing(stage, out, model=str(model)))


@pytest.mark.fault("T3")
@pytest.mark.full
@pytest.mark.parametrize("stage", SAMPLING)
def test_a_reward_model_with_another_vocabulary_is_asked_through_text(stage, out, model):
    """Its ids mean other bytes: read as if they were the policy's, they would be scored too."""
    plain = to_scorer(model, out.parent / "plain")
    permuted(shutil.copytree(plain, out.parent / "permuted"))
    result = succeeded(scored_by(stage, out, model, out.parent / "permuted"))
    assert "permuted has another tokenizer or head: it scores through text" in result.said
    name = "best.jsonl" if stage == "best_of_n" else "rollout-0000.jsonl"
    rows = (stage_folder(stage, out) / "samples" / name).read_text().splitlines()
    assert len({json.loads(row)["score"] for row in rows}) > 1
    opened = AutoModelForSequenceClassification.from_pretrained(plain).eval()
    tokenizer = AutoTokenizer.from_pretrained(plain)
    for row in map(json.loads, rows):
        text = row["prompt"] + row["completion"]
        ids = tokenizer(text, split_special_tokens=True, return_tensors="pt")["input_ids"]
        expected = opened(ids).logits.item()
        if row["score"] != pytest.approx(expected, abs=1e-5):
            raise SilentError(f"{row}, and the score of that text is {expected}")


def permuted(reward: Path) -> None:
    """Every plain token with another id, and its embedding with it: the same model in other ids."""
    tokenizer = json.loads((reward / "tokenizer.json").read_text())
    special = {token["id"] for token in tokenizer["added_tokens"]}
    vocabulary = tokenizer["model"]["vocab"]
    old = sorted(set(vocabulary.values()) - special)
    new = dict(zip(old, reversed(old), strict=True))
    tokenizer["model"]["vocab"] = {t: new.get(i, i) for t, i in vocabulary.items()}
    (reward / "tokenizer.json").write_text(json.dumps(tokenizer))

    def move(tensors) -> None:
        rows = tensors["model.embed_tokens.weight"]
        order = [new.get(i, i) for i in range(len(rows))]  # its own inverse
        tensors["model.embed_tokens.weight"] = rows[order].clone()

    rewritten(reward, move)
