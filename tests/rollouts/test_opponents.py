"""Scores that compare with an opponent, and the mixture of two models that may be one."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig

from small_groups import random_groups
from truing.groups import TokenCompletion, TokenGroup
from truing.models.loading import load_causal
from truing.models.mixture import Mixture
from truing.models.network import Network
from truing.models.roles import Roles
from truing.rewards.base import Scores
from truing.rollouts.engines.base import SamplingSettings
from truing.rollouts.opponents import Against
from truing.rollouts.sampler import sample

SETTINGS = SamplingSettings(
    max_completion_length=7, temperature=1.0, batch_size=4, stop_id=2, engine="local"
)


def group(*ids, prompt=5):
    return TokenGroup((prompt,), tuple(TokenCompletion((i, 2)) for i in ids))


def by_first_id(groups):
    """The first id, in tenths, is the score; id 99 has none."""
    values = [None if c.ids[0] == 99 else c.ids[0] / 10 for g in groups for c in g.completions]
    return Scores.of(values, ["odd" if value is None else None for value in values])


def against(compared, *theirs):
    """Compared with an opponent who says these ids, whatever the prompt."""
    return Against(
        by_first_id, lambda groups, seed: [group(*theirs) for _ in groups], compared, seed=1
    )


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_bradley_terry_is_the_mean_probability_to_win_less_a_half():
    scores = against("bradley_terry", 20, 50)([group(30, 80), group(20)])
    assert scores.values == pytest.approx(
        [
            (sigmoid(1) + sigmoid(-2)) / 2 - 0.5,
            (sigmoid(6) + sigmoid(3)) / 2 - 0.5,
            (sigmoid(0) + sigmoid(-3)) / 2 - 0.5,
        ]
    )
    assert scores.parts["plain"] == [3.0, 8.0, 2.0]
    assert scores.parts["opponent"] == [2.0, 5.0, 2.0, 5.0]
    assert against("bradley_terry", 0)([group(90_000)]).values == pytest.approx([0.5])


def test_wins_count_and_equals_are_half():
    scores = against("wins", 20, 50, 50, 80)([group(10, 50, 90, 80)])
    assert scores.values == [-0.5, 0.0, 0.5, 0.375]


def test_the_quantile_reads_nothing_but_the_order():
    scores = against("log_quantile", 20, 50, 80)([group(10, 50, 90)])
    assert scores.values == pytest.approx([math.log(1 / 4), math.log(3 / 4), 0.0])
    apart = against("log_quantile", 20, 5000, 800_000)([group(10, 5000, 900_000)])
    assert apart.values == scores.values


def test_the_unscored_stay_so_and_an_opponent_without_a_score_is_no_opponent():
    scores = against("wins", 99, 20)([group(99, 30)])
    assert scores.values == [None, 0.5]
    assert scores.faults == {"odd": 1}
    lost = against("wins", 99)([group(10, 99), group(20)])
    assert lost.values == [None, None, None]
    assert lost.faults == {"odd": 1, "no opponent": 2}


def test_the_opponent_draws_anew_for_every_rollout_and_the_same_for_the_same():
    seeds = []

    def draw(groups, seed):
        seeds.append(seed)
        return [group(20) for _ in groups]

    compared = Against(by_first_id, draw, "wins", seed=1)
    for asked in ([group(30)], [group(40)], [group(30)]):
        compared(asked)
    Against(by_first_id, draw, "wins", seed=2)([group(30)])
    assert seeds[0] == seeds[2]
    assert len(set(seeds)) == 3


def two_models(kind):
    """A policy that has moved, and how to get at the reference it began as."""
    torch.manual_seed(0)
    if kind == "lora":
        policy = Network(
            load_causal("random:llama", torch.float32),
            lora=LoraConfig(r=4, target_modules="all-linear"),
        )
        roles = Roles(policy)
    else:
        policy = Network(load_causal("random:llama", torch.float32))
        roles = Roles(policy, reference_copy=Network(load_causal("random:llama", torch.float32)))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if kind == "full" or "lora_B" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return policy, roles


def next_logps(network, ids):
    """log p(next token) after each of these ids, by the plain model."""
    with torch.no_grad():
        return network.base(torch.tensor([ids])).logits[0].double().log_softmax(-1)


@pytest.mark.parametrize("m", [0.25, 0.8])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_mixture_draws_by_both_models_token_by_token(kind, m):
    policy, roles = two_models(kind)
    prompts = [TokenGroup(g.prompt_ids) for g in random_groups(1, 5, 0)]
    drawn = sample(Mixture(policy, roles.as_reference, m), prompts, SETTINGS, completions=3, seed=4)
    apart = []
    for answered in drawn:
        for completion in answered.completions:
            ids = [*answered.prompt_ids, *completion.ids]
            own = next_logps(policy, ids)
            with roles.as_reference() as network:
                theirs = next_logps(network, ids)
            both = ((1 - m) * own + m * theirs).log_softmax(-1)
            rows = torch.arange(len(answered.prompt_ids) - 1, len(ids) - 1)
            found = torch.tensor(completion.sampled_logps, dtype=torch.float64)
            next_ids = torch.tensor(completion.ids)
            torch.testing.assert_close(found, both[rows, next_ids], rtol=0, atol=1e-4)
            apart.append((own - theirs)[rows, next_ids].abs().max())
    assert max(apart) > 0.05


@pytest.mark.parametrize("m", [0.0, 1.0])
def test_at_its_ends_the_mixture_is_one_of_the_two(m):
    policy, roles = two_models("full")
    prompts = [TokenGroup(g.prompt_ids) for g in random_groups(1, 5, 0)]
    alone = (policy, roles.reference_copy)[int(m)]
    mixed = sample(Mixture(policy, roles.as_reference, m), prompts, SETTINGS, completions=2, seed=4)
    plain = sample(alone, prompts, SETTINGS, completions=2, seed=4)
    assert [[c.ids for c in g.completions] for g in mixed] == [
        [c.ids for c in g.completions] for g in plain
    ]


def test_the_policy_is_as_it_was_after_the_mixture_has_drawn():
    policy, roles = two_models("lora")
    learns = {name for name, p in policy.named_parameters() if p.requires_grad}
    before = next_logps(policy, [5, 6, 7])
    sample(Mixture(policy, roles.as_reference, 0.5), [TokenGroup((5,))], SETTINGS, seed=1)
    assert {name for name, p in policy.named_parameters() if p.requires_grad} == learns
    assert torch.equal(next_logps(policy, [5, 6, 7]), before)
