"""The whole way from token ids to the gradient of every weight, on one random model.

TRL: its collator, padded rows, its fused head, its loss. Ours: packed groups with shared prompts.
"""

import copy

import doubles
import pytest
import torch
from transformers import AutoModelForCausalLM
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from small_groups import random_groups
from truing.data.packing import pack
from truing.models import loading
from truing.models.network import Network
from truing.models.roles import Roles

BETA = 0.3
HEAD = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")


@pytest.fixture(scope="module")
def models():
    """A policy and a reference near it, as transformers build them."""
    own = loading.load_causal("random:llama", torch.float32)
    policy = AutoModelForCausalLM.from_config(
        copy.deepcopy(own.config), attn_implementation="eager", dtype=torch.float32
    )
    policy.load_state_dict(own.state_dict())
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        for i, weight in enumerate(reference.parameters()):
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))
    return policy, reference


def ours(models, groups, objective):
    """Loss and gradients by name."""
    networks = []
    for model in models:
        own = loading.load_causal("random:llama", torch.float32)
        own.load_state_dict(model.state_dict())
        networks.append(Network(own))
    roles = Roles(networks[0], reference_copy=networks[1])
    batch = pack(groups)
    batch = batch.with_columns(reference_logps_N=roles.reference_logps(batch))
    outputs = roles.outputs(batch, "policy", objective.extra_outputs)
    loss = doubles.mean_loss(objective, batch, outputs)
    loss.backward()
    return loss, {name: weight.grad for name, weight in networks[0].base.named_parameters()}


def theirs(models, groups, **settings):
    """Loss and gradients by name."""
    policy, reference = (copy.deepcopy(model) for model in models)
    rows = [
        {
            "prompt_ids": list(group.prompt_ids),
            "chosen_ids": list(group.completions[group.chosen].ids),
            "rejected_ids": list(group.completions[group.rejected].ids),
        }
        for group in groups
    ]
    inputs = DataCollatorForPreference(pad_token_id=0)(rows)
    for model in (policy, reference):
        add_fused_lm_head(model, outputs=HEAD)
    attributes = {
        "ref_model": reference,
        "precompute_ref_logps": False,
        "beta": BETA,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "use_weighting": False,
        "loss_types": ["sigmoid"],
        "loss_weights": [1.0],
    }
    trainer = doubles.trainer(DPOTrainer, **attributes | settings)
    loss = DPOTrainer._compute_loss(trainer, policy, inputs, False)
    loss.backward()
    return loss, {name: weight.grad for name, weight in policy.named_parameters()}


@pytest.mark.parametrize(
    ("settings", "name", "fields"),
    [
        ({}, "dpo", {}),
        ({"ld_alpha": 0.4}, "ld_dpo", {"alpha": 0.4}),
        ({"use_weighting": True}, "wpo", {}),
    ],
    ids=["dpo", "ld_dpo", "wpo"],
)
def test_every_weight_has_the_same_gradient(models, settings, name, fields):
    groups = random_groups(seed=4, groups=5, completions=2, pairs=True)
    loss, gradients = ours(models, groups, doubles.method(name, beta=BETA, **fields))
    peer_loss, peer_gradients = theirs(models, groups, **settings)
    torch.testing.assert_close(loss, peer_loss, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == peer_gradients.keys()
    for key, gradient in gradients.items():
        scale = peer_gradients[key].abs().max()
        assert scale > 0
        assert (gradient - peer_gradients[key]).abs().max() < 1e-4 * scale, key
