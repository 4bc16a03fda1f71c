"""On the 15-sentence language every method on own samples raises the reward, as its preset sets it.

The gradient is the exact expectation over every group of two samples: no luck is involved.
"""

from __future__ import annotations

import pytest
import tiny_language as tiny
import torch
from test_recovery import DUELS, REWARDS, Data, expected_loss, law, walked

from truing import objectives
from truing.training.method import resolve

ON_POLICY = [name for name in objectives.methods() if objectives.find(name).credit is not None]


def reward_of(logits):
    return float((law(logits).exp() * REWARDS).sum())


def greedy_reward(logits):
    """The reward of the sentence that takes the likeliest token everywhere."""
    likeliest = logits.argmax(-1).tolist()
    (sentence,) = (
        i
        for i, steps in enumerate(tiny.SENTENCES)
        if all(likeliest[context] == token for context, token in steps)
    )
    return float(REWARDS[sentence])


@pytest.mark.parametrize("name", ON_POLICY)
def test_the_reward_rises(name):
    raw = {"method": name, "reward": "any"}
    if "beta" in objectives.find(name).__dataclass_fields__:
        raw["beta"] = 0.0  # probabilities of groups are put on advantages, where a KL has none
    method = resolve("stage", raw, "test")
    assert method.credit is not None
    data = Data(DUELS)
    plain = data.batch

    def loss(logits):
        if method.credit.wants_greedy:
            baseline_C = torch.full((plain.size_C,), greedy_reward(logits), dtype=torch.float64)
            data.batch = plain.with_columns(baseline_C=baseline_C)
        return expected_loss(method.objective, method.credit, data, logits)

    before = reward_of(tiny.REFERENCE)
    after = reward_of(walked(loss, steps=40))
    assert after > before + 0.2
