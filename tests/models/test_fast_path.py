"""The fast path equals the slow one: plain transformers, one completion a row, whole logits.

Shared prompts, segments, tiles, fused norms and gates, frozen layers computed once: loss and
gradients in float32 stay within 1e-5 of each other, whatever the shapes.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from small_groups import random_groups
from truing.data.packing import micro_batches, pack
from truing.memory import Memory
from truing.models import fused, loading, logprobs, shared_prompts, tiny
from truing.models.network import Network
from truing.models.roles import Roles

CPU = torch.device("cpu")
shapes = given(
    seed=st.integers(0, 10_000),
    groups=st.integers(1, 7),
    completions=st.integers(1, 5),
    longest=st.integers(1, 40),
    budget=st.integers(20, 400),
    segment=st.sampled_from([3, 16, 128]),
    free=st.sampled_from([0, 60, 4096]),
    tile=st.sampled_from([50, 3000, 2**19]),
)


def plain(architecture):
    """The model as transformers has it, without anything of ours."""
    ours = loading.load_causal(f"random:{architecture}", torch.float32)
    model = AutoModelForCausalLM.from_config(
        copy.deepcopy(ours.config), attn_implementation="eager", dtype=torch.float32
    ).eval()
    model.load_state_dict(ours.state_dict())
    return ours, model


def weighted(logps_N):
    """Every token weighted differently."""
    return (logps_N * torch.linspace(0.5, 2.0, len(logps_N))).sum()


def slow_logps(model, groups):
    """Log-probs of every completion's tokens, each in a row of its own, in the groups' order."""
    found = []
    for group in groups:
        for completion in group.completions:
            ids = torch.tensor([*group.prompt_ids, *completion.ids])
            table = torch.log_softmax(model(ids[None]).logits[0, :-1], -1)
            found.append(table.gather(1, ids[1:, None])[-len(completion.ids) :, 0])
    return found


def fast_logps(network, groups, budget):
    """The same through packed micro-batches."""
    found = {}
    for part in micro_batches(groups, budget):
        batch = Roles(network).placed(pack(part), CPU, Memory())
        logps_N = network(batch, logps=True).logps_N
        lengths = [len(c.ids) for group in part for c in group.completions]
        remaining = iter(logps_N.split(lengths))
        for group in part:
            found[id(group)] = [next(remaining) for _ in group.completions]
    return [logps for group in groups for logps in found[id(group)]]


def compare(network, model, groups, budget, pairs):
    """Log-probs, loss and the gradients of each (ours, theirs), relative to their size."""
    ours, theirs = (
        torch.cat(fast_logps(network, groups, budget)),
        torch.cat(slow_logps(model, groups)),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    losses = weighted(ours), weighted(theirs)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    for loss in losses:
        loss.backward()
    for name, (left, right) in pairs().items():
        scale = right.abs().max().item()
        error = (left - right).abs().max().item()
        assert error <= 1e-5 * scale + 5e-7, (name, error, scale)  # some are 0 but for rounding


@contextmanager
def small_parts(segment, free, tile):
    """Limits so small that small groups are cut, put together and tiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_prompts, "SEGMENT_QUERIES", segment)
        patch.setattr(shared_prompts, "FREE_SCORES", free)
        patch.setitem(logprobs.TILE_LOGITS, "cpu", tile)
        patch.setattr(fused, "TILE_NUMBERS", tile)
        yield


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@settings(max_examples=12, deadline=None)
@shapes
def test_every_weight(
    architecture, seed, groups, completions, longest, budget, segment, free, tile
):
    ours, model = plain(architecture)
    network = Network(ours)
    network.trainable("policy")
    made = random_groups(seed, groups, completions, longest=longest)

    def pairs():
        theirs = dict(model.named_parameters())
        own = {n: p for n, p in ours.named_parameters() if theirs[n].grad is not None}
        return {n: (p.grad, theirs[n].grad) for n, p in own.items()}

    with small_parts(segment, free, tile):
        compare(network, model, made, budget, pairs)


@settings(max_examples=12, deadline=None)
@shapes
def test_adapters_above_frozen_layers(
    seed, groups, completions, longest, budget, segment, free, tile
):
    ours, model = plain("llama")
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], layers_to_transform=[1])
    network, other = Network(ours, lora=lora), Network(model, lora=lora)
    g = torch.Generator().manual_seed(seed)
    adapters = network.trainable("policy"), other.trainable("policy")
    for mine, theirs in zip(*(a.values() for a in adapters), strict=True):
        mine.data = 0.2 * torch.randn(mine.shape, generator=g)
        theirs.data = mine.data.clone()
    made = random_groups(seed, groups, completions, longest=longest)

    def pairs():
        return {n: (p.grad, adapters[1][n].grad) for n, p in adapters[0].items()}

    with small_parts(segment, free, tile):
        compare(network, model, made, budget, pairs)
