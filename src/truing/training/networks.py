"""The networks that an objective's declarations ask for, and no more."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig

from truing import config
from truing.errors import UsageError
from truing.models import loading
from truing.models.heads import new_score_head, new_value_head
from truing.models.network import Network
from truing.models.roles import (
    Roles,
    attach_critic_adapter,
    attach_reward_adapter,
    load_critic,
    load_reward_network,
)
from truing.training.inputs import Inputs
from truing.training.method import Method


def networks(
    method: Method, inputs: Inputs, device: torch.device, dtype: torch.dtype
) -> tuple[Roles, LoraConfig | None]:
    """The networks that the objective's declarations ask for, and no more.

    New adapters begin at random: by the stage's seed, whatever was drawn before in this process.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(inputs.seed)
        return _networks(method, inputs, device, dtype)


def _networks(
    method: Method, inputs: Inputs, device: torch.device, dtype: torch.dtype
) -> tuple[Roles, LoraConfig | None]:
    objective = method.objective
    transformer = loading.load_causal(inputs.source, dtype, inputs.revision)
    lora = lora_config(inputs.model, transformer)
    size: int = transformer.config.hidden_size
    policy = Network(
        transformer,
        lora=lora,
        score_head=new_score_head(size, inputs.seed) if objective.trains == "reward" else None,
        value_head=new_value_head(size) if _critic(method) == "policy" else None,
    )
    needs_reference = method.reads_reference or method.credit is not None
    needs_reference |= method.curation is not None and method.curation.draws_from_reference
    reference_copy = None
    if method.caches_reference:
        needs_reference = False  # before its first update the policy itself says what is kept
    if needs_reference and (lora is None or method.moves_reference):
        reference_copy = Network(loading.load_causal(inputs.source, dtype, inputs.revision))
        reference_copy.requires_grad_(False).to(device)
    reward_copy = critic = None
    if inputs.reward_run is not None:
        shares = lora is not None and inputs.shares_trunk
        if shares:
            attach_reward_adapter(policy, inputs.reward_run, dtype)
        else:
            reward_copy = load_reward_network(inputs.reward_run, dtype)
            reward_copy.requires_grad_(False).to(device)
    if _critic(method) == "reward":
        critic = _own_critic(method, inputs, policy, lora, dtype)
    temperature = getattr(method.training, "temperature", 1.0)
    if method.credit is None:
        temperature = 1.0  # ratios to the sampler need its temperature; a loss over rows does not
    policy.to(device)
    if critic is not None:
        critic.to(device)
    return Roles(policy, reference_copy, reward_copy, critic, temperature=temperature), lora


def _critic(method: Method) -> str | None:
    """Where the critic of a method that has one lives."""
    training = method.training
    return training.critic if isinstance(training, config.ActorCritic) else None


def _own_critic(
    method: Method,
    inputs: Inputs,
    policy: Network,
    lora: LoraConfig | None,
    dtype: torch.dtype,
) -> Network | None:
    """A critic that starts as the reward model: an adapter on the policy's trunk where that is the
    reward model's too, else a network of its own."""
    assert inputs.reward_run is not None  # the stage has looked
    # checkpointed layers are computed again in the backward pass, when the adapter is another
    if lora is not None and inputs.shares_trunk and not method.training.gradient_checkpointing:
        attach_critic_adapter(policy, inputs.reward_run, dtype)
        return None
    return load_critic(inputs.reward_run, dtype, lora)


def lora_config(model: config.Model, transformer: Any) -> LoraConfig | None:
    """The recipe's adapters in peft's terms; dropout stays off, as every ratio needs."""
    if model.lora is None:
        return None
    layers: int = transformer.config.num_hidden_layers
    last = model.lora.last_layers
    if last is not None and last > layers:
        raise UsageError(
            f"model.lora.last_layers is {last}, the model has {layers} layers",
            remedy=f"give at most {layers}, or null for all",
        )
    targets: str | list[str] = model.lora.target_modules
    if targets == "all-linear" and last is not None:
        targets = _linear_names(transformer)
    return LoraConfig(
        r=model.lora.rank,
        lora_alpha=model.lora.alpha,
        target_modules=targets,
        layers_to_transform=None if last is None else list(range(layers - last, layers)),
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=transformer.config.model_type == "gpt2",
    )


def _linear_names(transformer: Any) -> list[str]:
    """Names of the linear layers inside the decoder layers: all-linear, spelt out."""
    head = transformer.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in transformer.named_modules()
            if type(module).__name__ in ("Linear", "Conv1D") and module is not head
        }
    )
