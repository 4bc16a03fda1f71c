"""What a frozen part says: the reference at the sampler's temperature and without adapters, any
loaded model without dropout."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from small_groups import random_groups
from truing.data.packing import pack
from truing.models import loading, tiny
from truing.models.forward import hidden_states
from truing.models.network import Network
from truing.models.roles import Roles

BATCH = pack(random_groups(5, 4, 2))
LORA = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)


def network(**options) -> Network:
    return Network(loading.load_causal("random:llama", torch.float64), **options)


def from_whole_logits(temperature: float) -> torch.Tensor:
    """Log-probs of the model as it was loaded, from its whole table of logits."""
    plain = network()
    states = hidden_states(plain.trunk, BATCH)[BATCH.source_N]
    table = (states @ plain.vocabulary_weight.T / temperature).log_softmax(-1)
    return table.gather(1, BATCH.token_ids_N[:, None])[:, 0]


def roles(adapters: bool, temperature: float) -> Roles:
    """A policy that is no longer its reference, which is an adapter left out, or a copy."""
    if adapters:
        return Roles(network(lora=LORA), temperature=temperature)
    policy = network()
    with torch.no_grad():
        policy.vocabulary_weight.mul_(1.5)
    return Roles(policy, reference_copy=network(), temperature=temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.8])
@pytest.mark.parametrize("adapters", [True, False])
def test_the_reference_is_the_model_as_loaded_at_the_temperature(adapters, temperature):
    parts = roles(adapters, temperature)
    said = parts.reference_logps(BATCH)
    torch.testing.assert_close(said, from_whole_logits(temperature), rtol=1e-9, atol=1e-9)
    assert not said.requires_grad
    own = parts.outputs(BATCH, "policy").logps_N
    assert (own - said).abs().max() > 1e-3


def test_a_loaded_model_has_no_dropout(tmp_path):
    tiny.random_model("gpt2", torch.float32, "eager").save_pretrained(tmp_path)
    model = loading.load_causal(str(tmp_path), torch.float32)
    assert model.config.resid_pdrop > 0
    once, again = (Network(model)(BATCH, logps=True).logps_N for _ in range(2))
    assert torch.equal(once, again)


def test_many_small_moves_of_a_bfloat16_reference_add_up():
    """A twentieth of the way to a weight 3 % away is below what bfloat16 can add to 1."""
    policy, reference = (
        Network(loading.load_causal("random:llama", torch.bfloat16)) for _ in range(2)
    )
    name = "model.layers.0.mlp.up_proj.weight"
    here, there = (n.base.get_parameter(name) for n in (reference, policy))
    with torch.no_grad():
        here.fill_(1.0)
        there.fill_(1.03)
    parts = Roles(policy, reference_copy=reference)
    for _ in range(60):
        parts.move_reference(0.05)
    torch.testing.assert_close(here, there, rtol=8e-3, atol=0)


def test_another_adapter_is_read_and_the_policys_own_comes_back():
    """As a reward model on the policy's trunk is read between two passes of the policy."""
    policy = network(lora=LORA)
    policy.peft.add_adapter("other", LORA)
    learns = set(policy.trainable("policy"))
    before = policy(BATCH, logps=True).logps_N
    with policy.using("other"):
        inside = policy(BATCH, logps=True).logps_N
    after = policy(BATCH, logps=True).logps_N
    assert (inside - before).abs().max() > 1e-3
    assert torch.equal(before, after)
    assert {name for name, p in policy.named_parameters() if p.requires_grad} == learns
