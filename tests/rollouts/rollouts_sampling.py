"""Settings, prompts and networks for tests of the sampler."""

from __future__ import annotations

import torch

from small_groups import STOP, random_groups
from truing.groups import TokenGroup
from truing.models import loading
from truing.models.network import Network
from truing.rollouts.engines.base import SamplingSettings
from truing.rollouts.sampler import sample


def settings(length=6, temperature=0.1, batch_size=8, stop=STOP, **more):
    """Random weights are nearly uniform: a low temperature gives their choices some shape."""
    return SamplingSettings(length, temperature, batch_size, stop, **more)


def network_of(architecture="llama"):
    model = loading.load_causal(f"random:{architecture}", torch.float32)
    return Network(model).requires_grad_(False)


def prompts(count=5, longest=9):
    return [TokenGroup(g.prompt_ids) for g in random_groups(11, count, 0, longest)]


def texts(groups):
    return [[completion.ids for completion in group.completions] for group in groups]


def often_drawn(network, given, **how):
    """A token that ends some completions early, some late and some never, as a stop token."""
    drawn = sample(network, given, settings(**how), completions=3, seed=9)
    places: dict[int, set[int]] = {}
    for ids in (ids for group in texts(drawn) for ids in group):
        for token in set(ids):
            places.setdefault(token, set()).add(ids.index(token))
    return max(places, key=lambda token: len(places[token]))
