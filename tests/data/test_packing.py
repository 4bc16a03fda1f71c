"""Packing: every token once, prompts once, demonstrations chosen, order by seed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from small_groups import STOP, random_groups
from truing.data.loader import Loader
from truing.data.packing import micro_batches, pack
from truing.groups import TokenCompletion, TokenGroup


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(1, 12), budget=st.integers(1, 300))
def test_no_group_is_lost_and_budgets_hold(seed, count, budget):
    groups = random_groups(seed, count, 2)
    parts = micro_batches(groups, budget)
    assert sorted(id(g) for part in parts for g in part) == sorted(map(id, groups))
    for part in parts:
        batch = pack(part)
        assert batch.size_T == sum(g.length for g in part)
        if len(part) > 1:
            assert batch.size_T <= budget


def test_the_batch_says_what_the_groups_say():
    groups = random_groups(3, 5, 3)
    batch = pack(groups)
    flat = batch.tokens_T
    expected = [i for g in groups for c in g.completions for i in c.ids]
    assert flat[batch.target_N].tolist() == expected
    assert batch.lengths_C.tolist() == [len(c.ids) for g in groups for c in g.completions]
    assert batch.group_C.tolist() == [i for i, g in enumerate(groups) for _ in g.completions]
    # the state that predicts a completion's first token is its prompt's last
    starts = [0, *(batch.last_C + 1).tolist()[:-1]]
    for start, group in zip(starts[::3], groups, strict=True):
        assert flat[batch.source_N[start]] == group.prompt_ids[-1]
    prompt_tokens = int((batch.branch_T == 0).sum())
    assert prompt_tokens == sum(len(g.prompt_ids) for g in groups)


def test_the_loader_repeats_by_seed_and_sees_everything_once():
    loader = Loader(list(range(10)), 4, seed=1)
    epoch = list(loader.epoch(0))
    assert sorted(i for batch in epoch for i in batch) == list(range(10))
    assert [len(batch) for batch in epoch] == [4, 4, 2]
    assert list(loader.epoch(0)) == epoch
    assert list(loader.epoch(1)) != epoch
    assert list(Loader(list(range(10)), 4, seed=2).epoch(0)) != epoch
    supply = loader.forever()
    drawn = [next(supply) for _ in range(5)]
    assert all(len(batch) == 4 for batch in drawn)
    assert sorted(i for batch in drawn for i in batch) == sorted([*range(10)] * 2)


def test_unknown_columns_are_refused():
    batch = pack(random_groups(1, 1, 1))
    with pytest.raises(KeyError, match="table of columns"):
        batch.with_columns(mood_C=batch.group_C)


def test_steps_are_found_in_the_rows_wherever_their_group_lands():
    groups = [
        TokenGroup(
            (3,) * length, (TokenCompletion((4, 5, 6, 7, STOP), steps=((1, True), (3, False))),)
        )
        for length in (1, 5, 2)
    ]
    batch = pack(groups)
    flat = batch.tokens_T
    assert flat[batch["step_end_S"]].tolist() == [5, 7] * 3
    assert batch.group_T[batch["step_end_S"]].tolist() == [0, 0, 1, 1, 2, 2]
    assert batch["step_label_S"].tolist() == [True, False] * 3
    assert batch["step_end_S"].tolist() != pack(groups[::-1])["step_end_S"].tolist()


def test_margins_and_probabilities_are_columns_when_every_pair_has_them():
    pairs = random_groups(1, 3, 2, pairs=True)
    said = [replace(pair, margin=i, probability=i / 4) for i, pair in enumerate(pairs)]
    batch = pack(said)
    assert batch["margin_G"].tolist() == [0.0, 1.0, 2.0]
    assert batch["probability_G"].tolist() == [0.0, 0.25, 0.5]
    for name in ("margin_G", "probability_G"):
        assert name not in pack([*said, pairs[0]])


def test_without_steps_or_mismatches_there_are_no_such_columns():
    batch = pack(random_groups(1, 2, 1))
    assert not {"step_end_S", "step_label_S", "mismatched_C", "margin_G"} & set(batch.columns)
