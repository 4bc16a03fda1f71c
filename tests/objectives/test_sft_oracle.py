"""SFT against numbers worked out by hand (algorithm sheet 1.1)."""

import pytest
import torch
from flat_batches import leaf, make_batch

from truing.batch import Outputs, combine
from truing.objectives.supervised.sft import SFT


def test_a_token_of_a_long_completion_counts_as_much_as_one_of_a_short_one():
    batch = make_batch([2, 5])
    loss = SFT()(batch, Outputs(logps_N=leaf([-1, -2, -3, -4, -5, -6, -7])))
    assert loss.total.item() == pytest.approx(28, abs=1e-12)
    assert loss.weight == 7


def test_micro_batches_give_the_mean_over_tokens_not_the_mean_of_means():
    short = SFT()(make_batch([2]), Outputs(logps_N=leaf([-1, -2])))
    long = SFT()(make_batch([5]), Outputs(logps_N=leaf([-3, -4, -5, -6, -7])))
    step = (short.total + long.total) / (short.weight + long.weight)
    assert step.item() == pytest.approx(4.0, abs=1e-12)  # the mean of means is 3.25
    assert combine([short.metrics, long.metrics])["loss"] == pytest.approx(4.0, abs=1e-6)


def test_every_token_pulls_with_the_same_force():
    logps_N = leaf([-0.5, -10.0, -0.25])
    SFT()(make_batch([1, 2]), Outputs(logps_N=logps_N)).total.backward()
    assert logps_N.grad.tolist() == [-1, -1, -1]


def test_a_certain_policy_has_no_loss():
    assert SFT()(make_batch([1, 2]), Outputs(logps_N=leaf([0, 0, 0]))).total.item() == 0


def test_entropy_is_the_mean_over_tokens():
    outputs = Outputs(logps_N=leaf([-1, -1, -1]), entropy_N=torch.tensor([0.3, 0.6, 1.8]))
    metrics = combine([SFT()(make_batch([1, 2]), outputs).metrics])
    assert metrics["entropy"] == pytest.approx(0.9, abs=1e-6)


def test_it_asks_for_nothing_but_the_policy():
    assert (SFT.trains, SFT.unit, SFT.needs) == ("policy", "tokens", frozenset())
