"""What is opened, what is refused, and what a run leaves that others can open."""

from __future__ import annotations

import pickle

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from small_groups import STOP, random_groups
from truing.data.packing import pack
from truing.errors import ModelError, UnsafeFileError
from truing.models import loading, saving, tiny
from truing.models.heads import new_score_head
from truing.models.network import Network
from truing.models.roles import Roles, attach_reward_adapter, load_reward_network


def save_tiny(folder, architecture="llama"):
    model = loading.load_causal(f"random:{architecture}", torch.float32)
    saving.save_policy(folder, model, tiny.byte_tokenizer(), torch.float32)
    return model


def test_pickled_weights_are_refused_unread(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UnsafeFileError, match="pickled"):
        loading.resolve(str(tmp_path))
    assert not (tmp_path / "executed").exists()


def test_folder_without_weights_or_config_says_what_to_do(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        loading.resolve(str(tmp_path))
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        loading.resolve(str(tmp_path))


@pytest.mark.parametrize("path", ["./nowhere", "nowhere", "package:no_such_package_here", "x.gguf"])
def test_what_is_no_model_is_said_before_anything_loads(path):
    with pytest.raises(ModelError) as caught:
        loading.resolve(path)
    assert caught.value.remedy


def test_unknown_random_architecture_is_suggested():
    with pytest.raises(ModelError, match="did you mean 'llama'"):
        loading.load_causal("random:lama", torch.float32)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_merged_policy_opens_with_transformers_and_is_the_same_model(tmp_path, architecture):
    path = f"random:{architecture}"
    lora = LoraConfig(
        r=4,
        target_modules="all-linear",
        fan_in_fan_out=architecture == "gpt2",
        init_lora_weights=False,
    )
    network = Network(loading.load_causal(path, torch.float32), lora=lora)
    masters = {n: p.detach() for n, p in network.trainable("policy").items()}
    model = saving.merged(path, masters, lora, tmp_path / "adapter")
    saving.save_policy(tmp_path, model, tiny.byte_tokenizer(), torch.float32)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert AutoTokenizer.from_pretrained(tmp_path)("hi")["input_ids"]
    group = random_groups(seed=5, groups=1, completions=1)[0]
    batch = pack([group])
    logps_N = network(batch, logps=True).logps_N
    ids = torch.tensor([*group.prompt_ids, *group.completions[0].ids])[None]
    table = torch.log_softmax(opened(ids).logits[0, len(group.prompt_ids) - 1 : -1], -1)
    expected = table.gather(1, batch.token_ids_N[:, None])[:, 0]
    torch.testing.assert_close(logps_N, expected, rtol=1e-4, atol=1e-4)


def stored_in_bfloat16(architecture, folder):
    """A model as most on the hub are, with a file of its own on how to draw from it."""
    model = loading.load_causal(f"random:{architecture}", torch.float32)
    model.generation_config.do_sample, model.generation_config.top_k = True, 7
    saving.save_policy(folder, model, tiny.byte_tokenizer(), torch.bfloat16)
    return str(folder)


def trained(path, trains, head=None):
    """Masters that are no bfloat16 numbers."""
    network = Network(loading.load_causal(path, torch.float32), score_head=head)
    numbers = torch.Generator().manual_seed(1)
    return {
        name: p.detach() + 1e-4 * torch.rand(p.shape, generator=numbers)
        for name, p in network.trainable(trains).items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_an_export_is_the_source_with_the_masters_in_it_byte_by_byte(tmp_path, architecture, dtype):
    path = stored_in_bfloat16(architecture, tmp_path / "source")
    masters = trained(path, "policy")
    before = {name: tensor.clone() for name, tensor in masters.items()}
    expected = loading.load_causal(path, torch.float32)
    for name, parameter in expected.named_parameters():
        parameter.data.copy_(masters[f"base.{name}"])
    found = saving.merged(path, masters, None, tmp_path / "adapter")
    for folder, model in {"found": found, "expected": expected}.items():
        saving.save_policy(tmp_path / folder, model, tiny.byte_tokenizer(), dtype)
    for file in (tmp_path / "expected").iterdir():
        assert (tmp_path / "found" / file.name).read_bytes() == file.read_bytes(), file.name
    assert all(torch.equal(masters[name], before[name]) for name in masters)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_reward_model_is_exported_to_the_last_bit(tmp_path, architecture):
    path = stored_in_bfloat16(architecture, tmp_path / "source")
    head = new_score_head(64, seed=3)
    masters = trained(path, "reward", head)
    head = saving.head_of(masters, "score_head")
    model = saving.merged(path, masters, None, tmp_path / "adapter")
    saving.save_scorer(tmp_path, model, head, tiny.byte_tokenizer(), STOP, torch.float32)
    saved = load_file(tmp_path / "model.safetensors")
    assert torch.equal(saved.pop("score.weight"), masters.pop("score_head.weight"))
    assert len(saved) == len(masters)
    for name, tensor in masters.items():
        assert torch.equal(saved[name.removeprefix("base.")], tensor)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=4, target_modules="all-linear")])
def test_an_export_beside_training_changes_no_default_of_torch(tmp_path, monkeypatch, lora):
    """They are the process's, not the thread's: a step that runs would make bfloat16 tensors."""
    path = stored_in_bfloat16("llama", tmp_path / "source")
    head = new_score_head(64, seed=3)
    asked, honest = [], torch.set_default_dtype
    monkeypatch.setattr(torch, "set_default_dtype", lambda d: (asked.append(d), honest(d)))
    random = torch.get_rng_state()
    model = saving.merged(path, {}, lora, tmp_path / "adapter")
    if lora is None:
        assert torch.equal(torch.get_rng_state(), random)
        model = saving.merged(path, trained(path, "policy"), lora, tmp_path / "adapter")
    saving.save_scorer(tmp_path / "scorer", model, head, tiny.byte_tokenizer(), STOP, torch.float32)
    assert asked
    assert set(asked) == {torch.float32}


def test_a_model_that_is_more_than_weights_is_loaded_for_its_export(tmp_path):
    """DeepSeek-V3 routes by a buffer that lies in its files: nothing else knows it."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 32}
    more = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2}
    more |= {"first_k_dense_replace": 0}
    AutoConfig.for_model("deepseek_v3", **sizes, **more).save_pretrained(tmp_path)
    assert loading.empty_causal(str(tmp_path)) is None
    assert loading.empty_causal("random:llama") is not None


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_reward_model_scores_the_same_in_transformers_and_here(tmp_path, architecture):
    """Also where padding would be the stop token: the pooled token must not move."""
    path = f"random:{architecture}"
    head = new_score_head(64, seed=3)
    network = Network(loading.load_causal(path, torch.float32), score_head=head)
    tokenizer = tiny.byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token  # the classic bug's precondition
    masters = {n: p.detach() for n, p in network.trainable("reward").items()}
    model = saving.merged(path, masters, None, tmp_path / "adapter")
    saving.save_scorer(tmp_path, model, head, tokenizer, STOP, torch.float32)
    batch = pack(random_groups(seed=6, groups=3, completions=1))
    ours = network(batch, scores=True).scores_C
    again = load_reward_network(tmp_path, torch.float32)(batch, scores=True).scores_C
    torch.testing.assert_close(again, ours, rtol=1e-5, atol=1e-5)
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    for group, score in zip(
        random_groups(seed=6, groups=3, completions=1), ours.tolist(), strict=True
    ):
        ids = torch.tensor([*group.prompt_ids, *group.completions[0].ids])[None]
        padded = torch.cat([ids, torch.full((1, 3), opened.config.pad_token_id)], 1)
        mask = (torch.arange(padded.shape[1]) < ids.shape[1]).long()[None]
        theirs = opened(padded, attention_mask=mask).logits[0, 0].item()
        assert theirs == pytest.approx(score, rel=1e-4, abs=1e-4)


def test_a_reward_adapter_on_the_trunk_scores_like_the_folder_it_came_from(tmp_path):
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    trained = Network(
        loading.load_causal("random:llama", torch.float32),
        lora=lora,
        score_head=new_score_head(64, seed=3),
    )
    masters = {n: p.detach() for n, p in trained.trainable("reward").items()}
    model = saving.merged("random:llama", masters, lora, tmp_path / "adapter")
    saving.save_scorer(
        tmp_path, model, trained.score_head, tiny.byte_tokenizer(), STOP, torch.float32
    )
    saving.save_head(tmp_path / "adapter" / saving.SCORE_HEAD_FILE, trained.score_head)
    fresh = LoraConfig(r=4, target_modules="all-linear")
    policy = Network(loading.load_causal("random:llama", torch.float32), lora=fresh)
    learns = policy.trainable("policy")
    attach_reward_adapter(policy, tmp_path, torch.float32)
    policy.trainable("policy")
    roles = Roles(policy)
    batch = pack(random_groups(seed=6, groups=3, completions=2))
    before = policy(batch, logps=True).logps_N
    scores_C = roles.reward_scores(batch)
    torch.testing.assert_close(scores_C, trained(batch, scores=True).scores_C, rtol=1e-5, atol=1e-5)
    # and scoring leaves the policy as it was: its adapter active, the same tensors learning
    torch.testing.assert_close(policy(batch, logps=True).logps_N, before, rtol=0, atol=0)
    assert {n for n, p in policy.named_parameters() if p.requires_grad} == set(learns)
    assert roles.copies == 1


def test_compute_precision_is_detected_not_assumed(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(loading, "_cpu_has_bfloat16", lambda: True)
    assert loading.compute_dtype("auto", cpu) == torch.bfloat16
    monkeypatch.setattr(loading, "_cpu_has_bfloat16", lambda: False)
    assert loading.compute_dtype("auto", cpu) == torch.float32
    assert loading.compute_dtype("bfloat16", cpu) == torch.bfloat16


def test_a_tokenizer_without_a_usable_padding_token_is_refused():
    tokenizer = tiny.byte_tokenizer()
    assert saving.padding_id(tokenizer, STOP) == 0
    assert saving.padding_id(tokenizer, stop_id=0) != 0
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    with pytest.raises(ModelError, match="no special token"):
        saving.padding_id(bare, STOP)
