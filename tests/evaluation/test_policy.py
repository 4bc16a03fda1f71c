"""What is measured of a policy comes back in the order of the groups, with its sign."""

from __future__ import annotations

import pytest
import torch

from small_groups import random_groups
from truing.errors import ResourceError
from truing.evaluation.policy import per_completion, sequence_kl
from truing.memory import Memory

GROUPS = random_groups(4, 12, 2)


def lengths():
    return [float(len(c.ids)) for group in GROUPS for c in group.completions]


def test_numbers_come_back_in_the_order_they_were_asked_in(monkeypatch):
    monkeypatch.setattr("truing.evaluation.policy.TOKEN_BUDGET", 60)  # packed longest first
    assert per_completion(GROUPS, lambda batch: batch.lengths_C) == lengths()
    assert lengths() != sorted(lengths(), reverse=True)


def test_what_does_not_fit_at_once_is_computed_in_halves_and_said():
    def small(batch):
        if batch.size_G > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch.lengths_C

    said = []
    memory = Memory(said.append)
    assert per_completion(GROUPS, small, memory) == lengths()
    assert memory.taken() > 1
    assert len(said) == 1
    with pytest.raises(ResourceError, match="single group"):
        per_completion(GROUPS[:1], lambda batch: torch.empty(2**50), memory)


def test_a_policy_that_likes_its_own_samples_more_than_the_reference_has_positive_kl():
    found = sequence_kl(
        GROUPS,
        lambda batch: torch.full((batch.size_N,), -1.0),
        lambda batch: torch.full((batch.size_N,), -1.5),
    )
    assert found == pytest.approx([0.5 * length for length in lengths()])
