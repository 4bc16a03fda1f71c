"""The step by hand: a loss that is a dot product, weights moved by plain gradient descent.

What moved is then the gradient itself: every division, clip and schedule is a line of arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from truing.batch import Loss, Metric, Outputs
from truing.data.packing import pack
from truing.errors import NumericsError
from truing.groups import FinishReason, TokenCompletion, TokenGroup
from truing.objectives.base import Objective
from truing.training.contract import check_numbers
from truing.training.optim import MasterWeights, make_optimizer
from truing.training.step import Step


@dataclass
class Dot(Objective):
    """Sum of what the network says; notes what each step's `prepare` was told."""

    trains = "policy"
    unit = "completions"
    told: list = field(default_factory=list)

    def prepare(self, step):
        before = step.carried.get("steps", torch.tensor(0))
        self.told.append((step.number, int(before)))
        step.carried["steps"] = before + 1
        return step.batches

    def __call__(self, batch, outputs):
        total = outputs.scores_C.sum()
        return Loss(total, self.weigh(batch), {"loss": Metric(total.detach(), self.weigh(batch))})


def plain_step(slopes, learning_rate=1.0, max_grad_norm=1e9, schedule=lambda taken: 1.0):
    """A step in which a completion of the one token i pulls by slopes[i]."""
    weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    masters = MasterWeights({"weight": weight})
    optimizer = torch.optim.SGD(masters.masters.values(), lr=learning_rate)
    step = Step(
        objective=Dot(),
        compute=lambda batch: Outputs(scores_C=slopes[batch.token_ids_N] @ weight),
        masters=masters,
        optimizer=optimizer,
        schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, schedule),
        max_grad_norm=max_grad_norm,
        before_first_update=lambda metrics, batches: None,
    )
    return step, weight


SLOPES = torch.tensor([[1.0, 0.0], [3.0, 4.0], [-2.0, 5.0], [0.0, 1.0]], dtype=torch.float64)
MEAN = SLOPES.mean(0)
CUTS = [[[0, 1, 2, 3]], [[0], [1, 2, 3]], [[0, 1, 2], [3]], [[0], [1], [2], [3]]]


def cut_up(cut):
    """One group of one token for each slope."""
    return [
        pack([TokenGroup((9,), (TokenCompletion((i,), FinishReason.LENGTH),)) for i in part])
        for part in cut
    ]


@pytest.mark.parametrize("cut", CUTS)
def test_the_update_is_the_mean_over_the_step_however_it_is_cut(cut):
    step, weight = plain_step(SLOPES)
    metrics = step(cut_up(cut), {})
    torch.testing.assert_close(weight.detach(), -MEAN, rtol=1e-12, atol=1e-12)
    assert metrics["grad_norm"] == pytest.approx(MEAN.norm().item(), rel=1e-12)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("limit", [1.0, 3.0, 100.0])
def test_the_clip_is_on_the_mean(cut, limit):
    step, weight = plain_step(SLOPES, max_grad_norm=limit)
    metrics = step(cut_up(cut), {})
    norm = MEAN.norm().item()
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-12)
    torch.testing.assert_close(weight.detach(), -MEAN * min(1, limit / norm), rtol=1e-5, atol=0)


def test_a_second_step_starts_from_nothing_and_follows_the_schedule():
    step, weight = plain_step(SLOPES, schedule=lambda taken: [1.0, 0.5, 0.25][taken])
    rates = [step(cut_up(CUTS[1]), {})["learning_rate"] for _ in range(2)]
    assert rates == [1.0, 0.5]
    torch.testing.assert_close(weight.detach(), -1.5 * MEAN, rtol=1e-12, atol=1e-12)


def test_what_an_objective_carries_reaches_its_next_step_with_the_number_of_that():
    step, _ = plain_step(SLOPES)
    for _ in range(3):
        step(cut_up(CUTS[0]), {})
    assert step.objective.told == [(0, 0), (1, 1), (2, 2)]


def test_the_contract_is_asked_once_with_the_gradient_of_the_mean_in_place():
    step, _ = plain_step(SLOPES, max_grad_norm=1e-3)
    seen = []
    step.before_first_update = lambda metrics, batches: seen.append(
        (metrics["loss"], step.masters.gradients()["weight"].clone())
    )
    for _ in range(2):
        step(cut_up(CUTS[2]), {})
    ((loss, gradient),) = seen
    assert loss == 0.0
    torch.testing.assert_close(gradient, MEAN)


def test_vectors_are_not_decayed_and_matrices_are():
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = make_optimizer(MasterWeights({"m": matrix, "v": vector}), 0.1, weight_decay=0.5)
    for parameter in (matrix, vector):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert matrix.detach().unique().tolist() == pytest.approx([0.95])
    assert vector.detach().unique().tolist() == [1.0]


def test_nan_is_within_no_tolerance():
    with pytest.raises(NumericsError, match="nan before the first update"):
        check_numbers({"loss": (0.0, 1e9)}, {"loss": math.nan}, "dot")
