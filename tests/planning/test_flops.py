"""Operations counted from sizes are those that torch counts while it computes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from small_groups import random_groups
from truing.config import Lora, Model
from truing.data.packing import pack
from truing.models import tiny
from truing.models.network import Network
from truing.planning import flops
from truing.planning.flops import Flops, ModelSizes, Work
from truing.training.meter import Meter, model_sizes
from truing.training.networks import lora_config

LENGTH = 7


def counted(architecture, lora=None):
    """(forward, backward) of a row of LENGTH tokens as torch counts them, and our sizes."""
    config = tiny.random_config(architecture)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    recipe = Model(path="random:llama", lora=lora)
    network = Network(model, lora=lora_config(recipe, model))
    network.trainable("policy")
    ids = torch.arange(LENGTH)[None]
    with FlopCounterMode(display=False) as forward:
        logits = model(input_ids=ids).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    return (forward.get_total_flops(), backward.get_total_flops()), model_sizes(network, "policy")


# a row with plain attention computes every pair, seen or not, and logits of every token
ROW = Work(tokens=LENGTH, predicted=LENGTH, pairs=LENGTH**2)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_plain_pass_is_what_torch_counts(architecture):
    (forward, backward), sizes = counted(architecture)
    assert flops.forward(sizes, ROW).total == forward
    assert flops.backward(sizes, ROW).total == backward
    assert flops.training(sizes, ROW).total == forward + backward
    assert flops.reference(sizes, ROW).total == forward
    assert backward == 2 * forward


@pytest.mark.parametrize(("last", "reached"), [(None, 2), (1, 1)])
def test_frozen_matrices_get_no_gradient_and_nothing_does_below_the_lowest_adapter(last, reached):
    (forward, backward), sizes = counted("llama", Lora(rank=4, last_layers=last))
    assert flops.forward(sizes, ROW).total == forward
    assert sizes.reached_layers == reached
    # the lowest layer's own input needs no gradient: what reads it is counted too much, as said
    hidden, key = tiny.WIDTH, tiny.WIDTH * tiny.KEY_HEADS // tiny.HEADS
    entry = hidden * (hidden + 2 * key) + 3 * 4 * hidden
    assert flops.backward(sizes, ROW).total - backward == 2 * entry * LENGTH
    assert 2 * entry * LENGTH < backward / (2 * reached)


def test_the_reference_of_adapters_shares_what_is_below_them():
    _, whole = counted("llama", Lora(rank=4))
    _, last = counted("llama", Lora(rank=4, last_layers=1))
    _, plain = counted("llama")
    everything = flops.forward(plain, ROW)
    assert flops.reference(whole, ROW) == everything
    half = flops.reference(last, ROW)
    assert (2 * half.linear, 2 * half.attention) == (everything.linear, everything.attention)
    assert half.head == everything.head


def test_a_reward_has_no_logits():
    _, sizes = counted("llama")
    assert flops.training(sizes, Work(tokens=5, pairs=9)).head == 0


def test_a_prompt_is_counted_once_and_seen_by_all_its_completions():
    assert flops.group_work(3, [2, 1]) == Work(tokens=6, predicted=3, pairs=6 + (4 + 5) + 4)
    assert flops.group_work(3, []) == Work(tokens=3, predicted=0, pairs=6)
    assert flops.group_work(2, [1]) + flops.group_work(2, [1]) == Work(6, 2, 12)


@pytest.mark.parametrize("completions", [1, 3])
def test_a_batch_is_metered_as_its_groups(completions):
    groups = random_groups(7, 5, completions)
    meter = Meter()
    meter.add("train", pack(groups[:2]))
    meter.add("train", pack(groups[2:]))
    expected = Work()
    for group in groups:
        expected += flops.group_work(len(group.prompt_ids), [len(c.ids) for c in group.completions])
    assert meter.total("train") == expected
    assert meter.total("reference") == Work()
    assert meter.passes == 2


def test_drawing_reads_the_prompt_once_and_every_token_but_the_last():
    """Token by token: the prompt gives the first, each further one is read to draw the next."""
    prompt, completions = 4, [3, 1]
    tokens, pairs = prompt, sum(range(1, prompt + 1))
    for length in completions:
        for step in range(1, length):
            tokens, pairs = tokens + 1, pairs + prompt + step
    assert flops.sampling_work(prompt, completions) == Work(tokens, sum(completions), pairs)
    assert flops.sampling_work(prompt, [0]).tokens == prompt


def test_parts_add_up():
    assert Flops(1, 2, 3) + Flops(10, 20, 30) == Flops(11, 22, 33)
    assert Flops(1, 2, 3).total == 6
    assert flops.training(ModelSizes(1, 1, 1, 1), Work()).total == 0


def test_lower_and_upper_layers_make_a_forward_pass():
    _, last = counted("llama", Lora(rank=4, last_layers=1))
    lower, upper = flops.lower(last, ROW), flops.upper(last, ROW)
    assert lower + upper == flops.forward(last, ROW)
    _, plain = counted("llama")
    assert 2 * lower.linear == flops.forward(plain, ROW).linear
    assert 2 * lower.attention == flops.forward(plain, ROW).attention
    assert flops.lower(plain, ROW).total == 0
