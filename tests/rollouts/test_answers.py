"""What a sampler answers is held against what it was asked, and its log-probs against ours."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rollouts_sampling import network_of, prompts, settings, texts
from test_collect import collector

from small_groups import random_groups
from truing.config import OnPolicy
from truing.data.packing import pack
from truing.errors import NumericsError, ResourceError, RolloutError
from truing.groups import TokenCompletion, TokenGroup
from truing.memory import Memory
from truing.rollouts.credit.group import GroupCredit
from truing.rollouts.engines import local
from truing.rollouts.rows import Job, answered
from truing.rollouts.sampler import sample

ENDED = [
    (Job(prompt, number), TokenCompletion((5 + prompt, number, 2)))
    for prompt in range(3)
    for number in range(2)
]


def test_jobs_find_their_prompts_in_whatever_order_they_end():
    given = prompts(3)
    groups = answered(given, reversed(ENDED), 2)
    assert [group.prompt_ids for group in groups] == [prompt.prompt_ids for prompt in given]
    assert texts(groups) == [[(5 + p, 0, 2), (5 + p, 1, 2)] for p in range(3)]


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (ENDED[1:], "1 of 6 completions never came"),
        ([*ENDED, ENDED[0]], "completion 0 of prompt 0 came twice"),
        ([*ENDED[1:], ENDED[1]], "completion 1 of prompt 0 came twice"),
        ([*ENDED, (Job(3, 0), ENDED[0][1])], "was not asked"),
        ([*ENDED, (Job(0, 2), ENDED[0][1])], "was not asked"),
    ],
)
def test_jobs_that_end_otherwise_are_refused(ended, words):
    with pytest.raises(RolloutError, match=words):
        answered(prompts(3), ended, 2)


def changed(groups, **fields):
    first, *rest = groups[0].completions
    return [replace(groups[0], completions=(replace(first, **fields), *rest)), *groups[1:]]


@pytest.mark.parametrize(
    "change",
    [
        lambda groups: groups[1:],
        lambda groups: [*groups, groups[0]],
        lambda groups: groups[::-1],
        lambda groups: [replace(groups[0], completions=groups[0].completions[1:]), *groups[1:]],
        lambda groups: [replace(groups[0], completions=groups[0].completions * 2), *groups[1:]],
        lambda groups: changed(groups, ids=(), sampled_logps=()),
        lambda groups: changed(groups, ids=(5,) * 7, sampled_logps=(-1.0,) * 7),
        lambda groups: changed(groups, sampled_logps=(-1.0,) * 9),
        lambda groups: changed(groups, sampled_logps=None),
    ],
)
def test_other_answers_are_refused(change, monkeypatch):
    draw = local.draw
    monkeypatch.setattr(local, "draw", lambda *args, **more: change(draw(*args, **more)))
    with pytest.raises(RolloutError, match="what it was not asked"):
        sample(network_of(), prompts(3), settings(), completions=2)


def test_what_an_engine_raises_is_said(monkeypatch):
    def draw(*args, **more):
        raise KeyError("weights")

    monkeypatch.setattr(local, "draw", draw)
    with pytest.raises(RolloutError, match="KeyError: 'weights'") as caught:
        sample(network_of(), prompts(3), settings(), completions=2)
    assert isinstance(caught.value.__cause__, KeyError)


def test_fewer_are_drawn_at_once_and_the_text_stays(monkeypatch):
    network, given, said = network_of(), prompts(3), []
    whole = sample(network, given, settings(), completions=4)
    draw, sizes = local.draw, []

    def small(network, prompts, settings, **more):
        sizes.append(settings.batch_size)
        if settings.batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draw(network, prompts, settings, **more)

    monkeypatch.setattr(local, "draw", small)
    memory = Memory(said.append)
    assert texts(sample(network, given, settings(), completions=4, memory=memory)) == texts(whole)
    assert texts(sample(network, given, settings(), completions=4, memory=memory)) == texts(whole)
    assert sizes == [8, 4, 2, 2]  # what was learnt is kept
    assert memory.taken() == 2 == len(said)
    monkeypatch.setattr(local, "draw", lambda *args, **more: torch.empty(2**50))
    with pytest.raises(ResourceError, match="one completion"):
        sample(network, given, settings(), completions=4, memory=memory)


PROMPTS = [TokenGroup(g.prompt_ids) for g in random_groups(1, 4, 0)]


def test_logp_difference_limit():
    """The trainer of these rollouts says −1 of every token, as the sampler does."""
    assert OnPolicy.model_fields["logp_difference_limit"].default == 0.15

    def off(by):
        return lambda batch: (torch.full((batch.size_N,), -1.0 - by), torch.zeros(batch.size_N))

    def collected(by, limit):
        return collector(measure=off(by), logp_difference_limit=limit).collect(PROMPTS, 3)

    assert collected(0.05, 0.1).metrics["sampling/logp_difference_mean"] == pytest.approx(0.05)
    assert collected(0.2, None).metrics["sampling/logp_difference_mean"] == pytest.approx(0.2)
    with pytest.raises(RolloutError, match=r"0\.2 nats a token .* logp_difference_limit 0\.1"):
        collected(0.2, 0.1)
    with pytest.raises(RolloutError, match="logp_difference_limit"):
        collected(-0.05, 0.01)
    with pytest.raises(NumericsError, match="not finite"):
        collected(float("nan"), None)


def credited(scores):
    group = replace(
        random_groups(2, 1, 4)[0],
        completions=tuple(
            replace(c, score=s, sampled_logps=(-1.0,) * len(c.ids))
            for c, s in zip(random_groups(2, 1, 4)[0].completions, scores, strict=True)
        ),
    )
    batch = pack([group])
    one_N = torch.ones(batch.size_N)
    batch = batch.with_columns(sampled_logps_N=-one_N, reference_logps_N=-one_N, values_N=0 * one_N)
    (found,), metrics = GroupCredit()([batch])
    return found["advantages_N"], metrics


@pytest.mark.parametrize("scores", [[0.3] * 4, [0.0, 1e-12, 0.0, 1e-12], [1e-7, 0.0, 0.0, 0.0]])
def test_scores_that_are_equal_to_rounding_teach_exactly_nothing(scores):
    advantages_N, metrics = credited(scores)
    assert not advantages_N.any()
    assert float(metrics["frac_reward_zero_std"].total) == 1


def test_scores_that_differ_by_more_teach():
    advantages_N, metrics = credited([1e-4, 0.0, 0.0, 0.0])
    assert advantages_N.any()
    assert float(metrics["frac_reward_zero_std"].total) == 0
