"""The shared-prompt pass equals one completion a row, in value, loss and gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from layouts import seen_TT
from small_groups import random_groups
from truing.data.packing import micro_batches, pack
from truing.models import loading, shared_prompts, tiny
from truing.models.forward import hidden_states, takes_shared_prompts, unshared_hidden_states
from truing.models.logprobs import token_statistics
from truing.models.network import Network
from truing.models.shared_prompts import SharedPrompts


def trunk_of(model):
    return getattr(model, model.base_model_prefix)


def weighted_logps(model, batch, states):
    """A loss that gives every token another weight, so that no two gradients can be swapped."""
    logps_N, *_ = token_statistics(
        states[batch.source_N], model.get_output_embeddings().weight, batch.token_ids_N
    )
    weights_N = torch.linspace(0.5, 2.0, batch.size_N, dtype=logps_N.dtype)
    return logps_N, (logps_N * weights_N).sum()


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_shared_equals_unshared_in_loss_and_gradient(architecture):
    model = loading.load_causal(f"random:{architecture}", torch.float64)
    oracle = AutoModelForCausalLM.from_config(
        copy.deepcopy(model.config), attn_implementation="eager", dtype=torch.float64
    ).eval()
    oracle.load_state_dict(model.state_dict())
    batch = pack(random_groups(seed=3, groups=7, completions=3))
    shared, shared_loss = weighted_logps(model, batch, hidden_states(trunk_of(model), batch))
    unshared, unshared_loss = weighted_logps(
        oracle, batch, unshared_hidden_states(trunk_of(oracle), batch)
    )
    torch.testing.assert_close(shared, unshared, rtol=1e-6, atol=1e-6)
    shared_loss.backward()
    unshared_loss.backward()
    for (name, ours), theirs in zip(model.named_parameters(), oracle.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None, name
            continue
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5 * scale + 1e-9)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    groups=st.integers(1, 6),
    completions=st.integers(1, 4),
    budget=st.integers(10, 200),
)
def test_any_packing_gives_the_same_log_probs(seed, groups, completions, budget):
    """However groups are divided and laid out, a completion's log-probs do not change."""
    model = _llama()
    made = random_groups(seed, groups, completions)
    found = {}
    for part in micro_batches(made, budget):
        batch = pack(part)
        logps_N, _ = weighted_logps(model, batch, hidden_states(trunk_of(model), batch))
        found |= dict(zip(map(id, part), logps_N.split(_lengths(part)), strict=True))
    for group in made:
        batch = pack([group])
        alone, _ = weighted_logps(model, batch, unshared_hidden_states(trunk_of(model), batch))
        torch.testing.assert_close(found[id(group)], alone, rtol=1e-9, atol=1e-9)


def _lengths(groups):
    return [sum(len(c.ids) for c in group.completions) for group in groups]


_MODELS = {}


def _llama():
    if "llama" not in _MODELS:
        _MODELS["llama"] = loading.load_causal("random:llama", torch.float64)
    return _MODELS["llama"]


@pytest.mark.parametrize(("longest_segment", "free"), [(128, 4096), (3, 0), (2, 40)])
def test_the_layout_follows_the_rule_entry_by_entry(longest_segment, free, monkeypatch):
    """However the queries are cut into segments, and segments put together in blocks."""
    monkeypatch.setattr(shared_prompts, "SEGMENT_QUERIES", longest_segment)
    monkeypatch.setattr(shared_prompts, "FREE_SCORES", free)
    batch = pack(random_groups(seed=1, groups=4, completions=3, longest=7))
    seen = seen_TT(SharedPrompts(batch), batch.size_T)
    group, branch = batch.group_T.tolist(), batch.branch_T.tolist()
    for q in range(batch.size_T):
        for k in range(batch.size_T):
            sees = group[q] == group[k] and k <= q and branch[k] in (0, branch[q])
            assert bool(seen[q, k]) is sees, (q, k)


def test_what_stands_in_other_branches_is_never_seen():
    model = _llama()
    batch = pack(random_groups(seed=8, groups=5, completions=2))
    logps_N, _ = weighted_logps(model, batch, hidden_states(trunk_of(model), batch))
    tokens = batch.tokens_T.clone()
    last = batch.target_N[batch.last_C]  # nothing comes after a last token
    tokens[last] = 99
    changed = type(batch)(**{**_fields(batch), "tokens_T": tokens})
    states = hidden_states(trunk_of(model), changed)
    others = torch.ones(batch.size_N, dtype=torch.bool)
    others[batch.last_C] = False
    again, _ = weighted_logps(model, changed, states)
    torch.testing.assert_close(again[others], logps_N[others], rtol=0, atol=1e-12)


def _fields(batch):
    return {name: getattr(batch, name) for name in type(batch).__slots__}


def test_models_with_a_window_shorter_than_the_text_go_unshared():
    config = tiny.random_config("qwen2")
    assert takes_shared_prompts(config, 500)
    config.layer_types = ["full_attention", "sliding_attention"]
    config.sliding_window = 8
    assert takes_shared_prompts(config, 8)
    assert not takes_shared_prompts(config, 9)
    config.layer_types = ["full_attention", "linear_attention"]
    assert not takes_shared_prompts(config, 2)


def test_sliding_window_model_equals_itself_without_truing():
    """The fallback gives what the model gives for the plain text."""
    config = tiny.random_config("qwen2")
    config.use_sliding_window, config.sliding_window = True, 4
    config.layer_types = ["full_attention", "sliding_attention"]
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    loading.attention.register()
    ours = (
        AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="truing")
        .double()
        .eval()
    )
    ours.load_state_dict(plain.state_dict())
    group = random_groups(seed=2, groups=1, completions=1, longest=30)[0]
    batch = pack([group])
    logps_N, _ = weighted_logps(ours, batch, hidden_states(trunk_of(ours), batch))
    ids = torch.tensor([*group.prompt_ids, *group.completions[0].ids])[None]
    logits = plain(ids).logits[0, len(group.prompt_ids) - 1 : -1]
    expected = torch.log_softmax(logits, -1).gather(1, batch.token_ids_N[:, None])[:, 0]
    torch.testing.assert_close(logps_N, expected, rtol=1e-6, atol=1e-6)


def test_score_is_read_at_the_last_real_token():
    """Appending to another completion, or padding, does not move the pooled token."""
    from truing.models.heads import new_score_head

    network = Network(_llama(), score_head=new_score_head(64, seed=1).double())
    groups = random_groups(seed=4, groups=4, completions=2)
    together = network(pack(groups), scores=True).scores_C
    alone = torch.cat([network(pack([group]), scores=True).scores_C for group in groups])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
