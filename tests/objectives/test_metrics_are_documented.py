"""Metric names are public: each stands in docs/metrics.md."""

from __future__ import annotations

import re

import pytest
import torch
from flat_batches import make_batch

from truing import objectives
from truing.groups import TokenCompletion, TokenGroup
from truing.objectives._worked import stated_point
from truing.objectives.base import WholeStep
from truing.rollouts import credit, curation


@pytest.fixture(scope="module")
def documented(root):
    table = (root / "docs" / "metrics.md").read_text(encoding="utf-8")
    cells = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize("name", objectives.names())
def test_every_metric_of_an_objective_is_in_the_table(name, documented):
    objective = objectives.find(name)()
    batch, outputs = stated_point()
    (batch,) = objective.prepare(WholeStep([batch], lambda _: outputs))
    parts = [part.method + "/" for part in getattr(objective, "built", ())]
    for metric in objective(batch, outputs).metrics:
        plain = next((metric.removeprefix(p) for p in parts if metric.startswith(p)), metric)
        assert plain in documented, metric


@pytest.mark.parametrize("name", credit.names())
def test_every_metric_of_a_credit_rule_is_in_the_table(name, documented):
    noise_N = torch.linspace(-1, 0, 5)
    batch = make_batch(
        [2, 3],
        [0, 0],
        sampled_logps_N=noise_N,
        reference_logps_N=noise_N.flip(0),
        values_N=noise_N,
        scores_C=[0.0, 1.0],
        finished_C=[1, 0],
    )
    _, metrics = credit.find(name)()([batch])
    assert set(metrics) <= documented


@pytest.mark.parametrize("name", curation.names())
def test_every_metric_of_a_curation_is_in_the_table(name, documented):
    pair = (TokenCompletion((3,), score=0.0), TokenCompletion((4,), score=1.0, of_reference=True))
    _, metrics = curation.find(name)()([TokenGroup((5,), pair)], 0)
    assert set(metrics) <= documented
