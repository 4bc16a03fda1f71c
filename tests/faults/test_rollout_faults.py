"""Samplers that fail, are late, answer something else or have other weights."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import pytest
from harness import (
    fire,
    same,
    second,
    stopped,
    succeeded,
    truing,
)

from faults.matrix import POLICY_GRADIENT, SAMPLING


def drawing(change, call):
    """`change` what the sampler answers the `call`-th time it is asked, and from then on."""
    from truing.rollouts.engines import local

    draw, asked = local.draw, []

    def then(network, prompts, settings, *, completions, seed):
        asked.append(seed)
        found = draw(network, prompts, settings, completions=completions, seed=seed)
        if len(asked) < call:
            return found
        fire()
        return change(found)

    then.__module__ = draw.__module__
    local.draw = then


def dies(found):
    raise ConnectionResetError("the engine has gone")


def is_slow(found):
    time.sleep(0.5)
    return found


@pytest.mark.fault("W1")
@pytest.mark.parametrize("stage", SAMPLING)
def test_a_sampler_that_dies_stops_the_run(stage, out, whole):
    result = truing(stage, out, plant=[partial(drawing, dies, second(stage))])
    stopped(result, 7, "sampler", "ConnectionResetError: the engine has gone")
    succeeded(truing(stage, out, "--resume"))
    same(stage, out, whole(stage))


@pytest.mark.full
@pytest.mark.fault("W1")
@pytest.mark.parametrize("stage", SAMPLING)
def test_a_slow_sampler_is_waited_for(stage, out, whole):
    succeeded(truing(stage, out, plant=[partial(drawing, is_slow, 1)]))
    same(stage, out, whole(stage))


def fewer(found):
    return [replace(found[0], completions=found[0].completions[1:]), *found[1:]]


def more(found):
    both = found[0].completions + found[0].completions[:1]
    return [replace(found[0], completions=both), *found[1:]]


def a_group_twice(found):
    return [found[0], found[0], *found[2:]]


def reordered(found):
    return found[1:] + found[:1]


def a_group_less(found):
    return found[1:]


def empty(found):
    bare = replace(found[0].completions[0], ids=(), sampled_logps=())
    return [replace(found[0], completions=(bare, *found[0].completions[1:])), *found[1:]]


def without_a_logp(found):
    first = found[0].completions[0]
    cut = replace(first, sampled_logps=first.sampled_logps[:-1])
    return [replace(found[0], completions=(cut, *found[0].completions[1:])), *found[1:]]


OTHERS = [fewer, more, a_group_twice, reordered, a_group_less, empty, without_a_logp]


@pytest.mark.fault("W2")
@pytest.mark.parametrize(
    "change",
    [fewer, *(pytest.param(change, marks=pytest.mark.full) for change in OTHERS[1:])],
)
@pytest.mark.parametrize("stage", SAMPLING)
def test_completions_that_were_not_asked_stop_the_run(stage, change, out):
    result = truing(stage, out, plant=[partial(drawing, change, second(stage))])
    stopped(result, 7, "the sampler answered what it was not asked")


def jobs(change):
    """`change` the jobs that the engine says have ended."""
    from truing.rollouts.engines import local

    run = local._Drawing.run

    def then(self):
        fire()
        yield from change(list(run(self)))

    local._Drawing.run = then


def one_twice(ended):
    """The second completion of a prompt is the first again: by its text nobody could tell."""
    return [ended[0], *ended[:-1]]


def backwards(ended):
    return ended[::-1]


@pytest.mark.full
@pytest.mark.fault("W2")
@pytest.mark.parametrize("stage", SAMPLING)
def test_jobs_are_told_by_their_number(stage, out, whole):
    stopped(truing(stage, out, plant=[partial(jobs, one_twice)]), 7, "came twice")
    succeeded(truing(stage, out, "--overwrite", plant=[partial(jobs, backwards)]))
    same(stage, out, whole(stage))


def stale():
    """The sampler keeps the weights it was given first."""
    import copy

    from truing.rollouts.engines import local

    draw, kept = local.draw, []

    def then(network, *args, **more):
        if kept:
            fire()
        else:
            kept.append(copy.deepcopy(network))
        return draw(kept[0], *args, **more)

    local.draw = then


def of_other_tokens(found):
    """Log-probs that were aligned with other tokens: one place off."""
    return [
        replace(
            group,
            completions=tuple(
                replace(one, sampled_logps=(-1.0, *one.sampled_logps[:-1]))
                for one in group.completions
            ),
        )
        for group in found
    ]


@pytest.mark.fault("W3")
@pytest.mark.parametrize("stage", POLICY_GRADIENT)
def test_stale_weights_of_the_sampler_stop_the_run(stage, out):
    """Rounding is 1e-6 here, three steps of 1e-3 are 1e-2; without the fault the limit holds."""
    limit = ("--logp-difference-limit", "1e-4")
    stopped(truing(stage, out, *limit, plant=[stale]), 7, "nats a token from", "rollout 2")
    succeeded(truing(stage, out, *limit, "--overwrite"))


@pytest.mark.full
@pytest.mark.fault("W3")
@pytest.mark.parametrize("stage", POLICY_GRADIENT)
def test_log_probs_of_other_tokens_stop_the_run(stage, out):
    """With the limit that everybody has."""
    result = truing(stage, out, plant=[partial(drawing, of_other_tokens, 1)])
    stopped(result, 7, "logp_difference_limit 0.15", "rollout 1")
