from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.data.splits import split_by_prompt
from truing.errors import DataError
from truing.groups import Completion, Group, Message, Prompt


def groups_of(prompts: list[int]) -> list[Group]:
    return [
        Group(Prompt(f"prompt {prompt}"), (Completion(f"answer {i}"),), where=f"a:{i}")
        for i, prompt in enumerate(prompts)
    ]


@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=40).filter(lambda p: len(set(p)) > 1),
    st.floats(0.01, 0.5),
    st.integers(0, 5),
)
def test_no_prompt_is_on_both_sides_and_no_group_is_lost(
    prompts: list[int], share: float, seed: int
) -> None:
    groups = groups_of(prompts)
    train, test = split_by_prompt(groups, share, seed)
    assert train
    assert test
    assert not {g.prompt for g in train} & {g.prompt for g in test}
    place = groups.index
    assert sorted(train + test, key=place) == groups
    assert [place(g) for g in train] == sorted(place(g) for g in train)
    assert [place(g) for g in test] == sorted(place(g) for g in test)


@pytest.mark.parametrize(("test_rows", "held_out"), [(0.1, 10), (1, 1), (25, 25), (0, 0)])
def test_counts_and_shares(test_rows: float, held_out: int) -> None:
    train, test = split_by_prompt(groups_of(list(range(100))), test_rows, seed=0)
    assert (len(train), len(test)) == (100 - held_out, held_out)


def test_a_count_is_met_exactly_when_the_sizes_allow_it() -> None:
    groups = groups_of([0] * 50 + list(range(1, 51)))
    for seed in range(10):
        assert len(split_by_prompt(groups, 20, seed)[1]) == 20


def test_the_smallest_prompt_is_held_out_when_every_one_is_too_large() -> None:
    _, test = split_by_prompt(groups_of([0] * 9 + [1] * 3 + [2] * 9), 2, seed=0)
    assert {g.prompt.text for g in test} == {"prompt 1"}


def test_the_seed_decides() -> None:
    groups = groups_of(list(range(100)))
    assert split_by_prompt(groups, 0.2, 7) == split_by_prompt(groups, 0.2, 7)
    assert split_by_prompt(groups, 0.2, 7) != split_by_prompt(groups, 0.2, 8)


def test_conversations_with_the_same_last_turn_are_different_prompts() -> None:
    talks = [(Message("system", str(i)), Message("user", "go")) for i in range(4)]
    train, test = split_by_prompt([Group(Prompt("go", talk)) for talk in talks], 1, seed=0)
    assert (len(train), len(test)) == (3, 1)


@pytest.mark.parametrize(("prompts", "test_rows"), [([0, 0, 0], 1), ([0, 1], 2), ([0], 0.5)])
def test_a_side_without_groups_is_an_error(prompts: list[int], test_rows: float) -> None:
    with pytest.raises(DataError, match="cannot be divided"):
        split_by_prompt(groups_of(prompts), test_rows, seed=0)
