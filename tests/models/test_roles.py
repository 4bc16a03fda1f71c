"""The parts of a stage: what an objective is given, and a reference that follows the policy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig

from small_groups import random_groups
from truing.data.packing import pack
from truing.groups import TokenGroup
from truing.models import loading
from truing.models.forward import unshared_hidden_states
from truing.models.heads import new_score_head, new_value_head
from truing.models.network import Network
from truing.models.roles import Roles


def stepwise(seed: int, groups: int, completions: int) -> list[TokenGroup]:
    """Groups whose completions have a step end at every second token; the stop token has none."""

    def in_steps(completion):
        ends = range(0, len(completion.ids) - 1, 2)
        return replace(completion, steps=tuple((end, end % 4 == 0) for end in ends))

    return [
        replace(group, completions=tuple(map(in_steps, group.completions)))
        for group in random_groups(seed, groups, completions)
    ]


def load(dtype=torch.float64, architecture="llama", **options) -> Network:
    return Network(loading.load_causal(f"random:{architecture}", dtype), **options)


def lora(architecture="llama") -> LoraConfig:
    return LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules="all-linear",
        fan_in_fan_out=architecture == "gpt2",
        init_lora_weights=False,
    )


# Steps


def test_steps_are_scored_the_same_shared_unshared_and_alone():
    network = load(score_head=new_score_head(64, seed=1).double())
    groups = stepwise(seed=4, groups=6, completions=2)
    batch = pack(groups)
    together = network(batch, steps=True).scores_S
    assert together.shape == batch["step_label_S"].shape
    unshared = network.score_head(unshared_hidden_states(network.trunk, batch)[batch["step_end_S"]])
    torch.testing.assert_close(together, unshared, rtol=1e-9, atol=1e-9)
    single = [pack([group]) for group in groups]
    alone = [network(b, steps=True).scores_S for b in single if "step_end_S" in b]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-9)


def test_a_step_is_scored_by_what_stands_up_to_its_end():
    """What follows the step's last token, the stop token too, has no say; the token itself has."""
    network = load(score_head=new_score_head(64, seed=1).double())
    (group,) = random_groups(seed=3, groups=1, completions=1, longest=6)
    body = (5, 6, 7, 8, 9)

    def score(ids):
        completion = replace(group.completions[0], ids=ids, steps=((2, True),))
        return network(pack([replace(group, completions=(completion,))]), steps=True).scores_S

    assert torch.equal(score(body), score((5, 6, 7, 50, 51)))
    assert not torch.equal(score(body), score((5, 6, 50, 8, 9)))


def test_a_reward_model_scores_steps_where_there_are_some():
    roles = Roles(load(score_head=new_score_head(64, seed=1).double()))
    batch = pack(stepwise(seed=4, groups=3, completions=1))
    outputs = roles.outputs(batch, "reward")
    assert outputs.logps_N is None
    assert outputs.scores_C.shape == (3,)
    outputs.scores_S.sum().backward()
    assert roles.policy.score_head.weight.grad.abs().sum() > 0
    assert roles.policy.trunk.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0
    assert roles.outputs(pack(random_groups(4, 3, 1)), "reward").scores_S is None


# Collision


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_collision_is_of_each_predicting_distribution(temperature):
    roles = Roles(load(value_head=new_value_head(64).double()), temperature=temperature)
    (group,) = random_groups(seed=2, groups=1, completions=1)
    batch = pack([group])
    ids = torch.tensor([*group.prompt_ids, *group.completions[0].ids])[None]
    logits = roles.policy.base(ids).logits[0, len(group.prompt_ids) - 1 : -1]
    expected = (torch.softmax(logits / temperature, -1) ** 2).sum(-1).log().detach()
    for trains in ("policy", "policy+value"):
        found = roles.outputs(batch, trains, {"collision_N"}).collision_N
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        assert roles.outputs(batch, trains).collision_N is None


# A moving reference


def scrambled(network: Network, seed: int) -> Network:
    """Other weights, as training would leave them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter += 0.02 * noise.to(parameter.dtype)
    return network


def weights(network: Network) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in network.base.named_parameters()}


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_reference_moves_towards_every_weight(alpha):
    policy, reference = scrambled(load(), 1), scrambled(load(), 2)
    theta, before = weights(policy), weights(reference)
    Roles(policy, reference).move_reference(alpha)
    for name, moved in weights(reference).items():
        torch.testing.assert_close(moved, alpha * theta[name] + (1 - alpha) * before[name])
    for name, weight in weights(policy).items():
        assert torch.equal(weight, theta[name])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_with_an_adapter_the_reference_moves_towards_the_sum(architecture):
    config = lora(architecture)
    policy = scrambled(load(architecture=architecture, lora=config), 1)
    reference = load(architecture=architecture)
    own, before = weights(policy), weights(reference)
    Roles(policy, reference).move_reference(0.3)
    adapted = 0
    for name, moved in weights(reference).items():
        layer, _, kind = name.rpartition(".")
        theta = own.get(name)
        if theta is None:
            theta = own[f"{layer}.base_layer.{kind}"]
            if kind == "weight":
                b, a = (own[f"{layer}.lora_{x}.default.weight"] for x in "BA")
                change = 12 / 4 * b @ a
                theta = theta + (change.T if architecture == "gpt2" else change)
                adapted += 1
        torch.testing.assert_close(moved, 0.3 * theta + 0.7 * before[name])
    assert adapted > 0
    assert weights(policy).keys() == own.keys()  # the adapter is still one


@pytest.mark.parametrize("config", [None, lora()], ids=["full", "lora"])
def test_moved_all_the_way_the_reference_is_the_policy(config):
    policy = scrambled(load(torch.float32, lora=config), 1)
    roles = Roles(policy, load(torch.float32).requires_grad_(False))
    batch = pack(random_groups(seed=5, groups=3, completions=2))
    logps_N = policy(batch, logps=True).logps_N.detach()
    assert (roles.reference_logps(batch) - logps_N).abs().max() > 0.01
    roles.move_reference(1.0)
    torch.testing.assert_close(roles.reference_logps(batch), logps_N, rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for p in roles.reference_copy.parameters())


def test_an_adapter_smaller_than_bfloat16_can_add_still_moves_the_reference():
    """Merged in bfloat16 the change of a thousandth would be rounded away."""
    policy = load(torch.bfloat16, lora=lora())
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_" in name:
                parameter.fill_(1e-3)
    reference = load(torch.float32)
    for parameter in reference.parameters():
        parameter.data = parameter.data.bfloat16().float()
    name = "model.layers.0.mlp.up_proj.weight"
    before = weights(reference)[name]
    Roles(policy, reference).move_reference(1.0)
    change = weights(reference)[name] - before
    expected = 12 / 4 * 4 * torch.tensor(1e-3).bfloat16().float() ** 2
    torch.testing.assert_close(change, expected.expand_as(change), rtol=1e-2, atol=0)
