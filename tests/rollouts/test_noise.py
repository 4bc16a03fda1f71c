"""Chance: every completion has its own, and what is drawn again is drawn anew."""

from __future__ import annotations

import torch
from test_collect import collector

from small_groups import random_groups, scorer
from truing.groups import TokenGroup
from truing.models import loading
from truing.models.network import Network
from truing.rollouts.credit.group import GroupCredit
from truing.rollouts.sampler import SamplingSettings, sample


def prompts(number):
    return [TokenGroup(group.prompt_ids) for group in random_groups(1, number, 0)]


def test_the_completions_of_a_group_differ():
    network = Network(loading.load_causal("random:llama", torch.float32))
    settings = SamplingSettings(8, temperature=1.0, batch_size=64, stop_id=2)
    for group in sample(network, prompts(5), settings, completions=4, seed=2):
        assert len({completion.ids for completion in group.completions}) == 4


def test_groups_drawn_again_are_drawn_with_other_noise():
    made = collector(
        score=scorer(lambda completion, group: 0.0),  # nothing ever differs
        credit=GroupCredit(),
        dynamic_rounds=3,
    )
    seeds, draw = [], made.draw

    def noted(asked, seed):
        seeds.append(seed)
        drawn = draw(asked, seed)
        if len(seeds) < 4:
            return drawn
        made.score = scorer(lambda completion, group: float(len(completion.ids)))
        return drawn

    made.draw = noted
    made.collect(prompts(4), 3, more=lambda: prompts(4))
    assert len(set(seeds)) == len(seeds) == 4
