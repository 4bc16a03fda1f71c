"""A rollout: exact first ratio, one normalisation, nothing lost between its parts."""

from __future__ import annotations

import pytest
import torch

from small_groups import random_groups, scorer
from truing.data.packing import pack
from truing.errors import NumericsError
from truing.exact import kl_bound
from truing.groups import TokenCompletion, TokenGroup
from truing.rollouts.best_of_n import best
from truing.rollouts.collect import Collector
from truing.rollouts.credit.gae import GAE
from truing.rollouts.normalize import ScoreNormalizer


def collector(**changes):
    def draw(prompts, seed):
        drawn = random_groups(seed, len(prompts), 2)
        return [
            TokenGroup(
                prompt.prompt_ids,
                tuple(
                    TokenCompletion(c.ids, sampled_logps=(-1.0,) * len(c.ids))
                    for c in group.completions
                ),
            )
            for prompt, group in zip(prompts, drawn, strict=True)
        ]

    parts = {
        "draw": draw,
        "measure": lambda batch: (-torch.ones(batch.size_N), torch.zeros(batch.size_N)),
        "reference_logps": lambda batch: -torch.ones(batch.size_N),
        "score": scorer(lambda completion, group: float(len(completion.ids))),
        "normalize": ScoreNormalizer("none"),
        "credit": GAE(whiten_advantages=False, kl_coef=0.0, lam=1.0),
        "batch_size": 6,
        "micro_batch_tokens": 40,
        "device": torch.device("cpu"),
        "place": lambda batch: batch,
    }
    return Collector(**{**parts, **changes})


def test_every_completion_is_in_exactly_one_minibatch_with_its_own_score():
    prompts = [TokenGroup(g.prompt_ids) for g in random_groups(1, 10, 0)]
    rollout = collector().collect(prompts, seed=3)
    assert sum(b.size_C for part in rollout.minibatches for b in part) == 20
    assert [sum(b.size_C for b in part) for part in rollout.minibatches] == [6, 6, 6, 2]
    for part in rollout.minibatches:
        for batch in part:
            assert batch["scores_C"].tolist() == batch.lengths_C.tolist()
            # with no KL, no value and lambda 1 every token's advantage is its own score
            expected = batch["scores_C"][batch.completion_N]
            torch.testing.assert_close(batch["advantages_N"], expected)
    for group in rollout.groups:
        for completion in group.completions:
            assert completion.score == len(completion.ids)


def test_scores_are_normalised_by_the_first_rollout_and_then_never_again():
    normalize = ScoreNormalizer("reference")
    first = torch.tensor([1.0, 2.0, 6.0])
    normalize.fit(first)
    assert normalize.apply(first).mean().item() == pytest.approx(0, abs=1e-6)
    assert normalize.apply(first).std().item() == pytest.approx(1, abs=1e-6)
    normalize.fit(torch.tensor([30.0, 40.0]))
    assert normalize.apply(torch.tensor([3.0, 3.0])).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert normalize.mean == pytest.approx(3.0)
    with pytest.raises(NumericsError, match="same score"):
        ScoreNormalizer("reference").fit(torch.ones(4))
    raw = ScoreNormalizer("none")
    raw.fit(first)
    assert raw.apply(first) is first


def test_sampler_and_trainer_disagreement_is_measured():
    prompts = [TokenGroup(g.prompt_ids) for g in random_groups(1, 4, 0)]
    rollout = collector(
        measure=lambda batch: (torch.full((batch.size_N,), -1.25), torch.zeros(batch.size_N))
    ).collect(prompts, seed=3)
    assert rollout.metrics["sampling/logp_difference_mean"] == pytest.approx(0.25)
    assert rollout.metrics["sampling/logp_difference_max"] == pytest.approx(0.25)


def test_best_of_n_picks_the_first_best_and_states_its_bound():
    assert best([0.0, 3.0, 3.0, -1.0]) == 1
    # log n - (n - 1)/n
    for n, bound in {1: 0.0, 2: 0.193147, 4: 0.636294, 8: 1.204442, 64: 3.174508}.items():
        assert kl_bound(n) == pytest.approx(bound, abs=1e-6)


def test_packing_keeps_scores_and_choices():
    groups = random_groups(1, 3, 2, pairs=True)
    batch = pack(groups)
    assert batch["chosen_G"].tolist() == [0, 2, 4]
    assert batch["rejected_G"].tolist() == [1, 3, 5]
    with pytest.raises(KeyError, match="credit"):
        batch["advantages_N"]
