"""Groups of one type as another: what is lent, what is judged, what is scored."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from small_groups import random_groups
from truing.data.arranging import as_scored, demonstrations, unpaired, with_mismatched
from truing.data.packing import micro_batches, pack
from truing.errors import DataError
from truing.groups import FinishReason, TokenCompletion, TokenGroup


def judged(prompts: list[int]) -> list[TokenGroup]:
    """One unpaired group a prompt; every completion is another one."""
    return [
        TokenGroup((prompt,), (TokenCompletion((100 + i,), label=i % 2 == 0, score=1.0),))
        for i, prompt in enumerate(prompts)
    ]


@given(st.lists(st.integers(3, 6), min_size=2, max_size=12), st.integers(0, 9))
def test_every_group_is_lent_a_completion_of_another_prompt(prompts, seed):
    groups = judged(prompts)
    if len(set(prompts)) == 1:
        with pytest.raises(DataError, match="all prompts are the same"):
            with_mismatched(groups, seed)
        return
    owner = {group.completions[0].ids: group.prompt_ids for group in groups}
    for before, after in zip(groups, with_mismatched(groups, seed), strict=True):
        own, lent = after.completions
        assert replace(after, completions=(own,)) == before
        assert owner[lent.ids] != after.prompt_ids
        assert (own.mismatched, lent.mismatched) == (False, True)
        assert (lent.label, lent.score) == (own.label, None)


def test_with_different_prompts_each_completion_is_lent_once_by_seed():
    groups = judged(list(range(3, 40)))
    lent = [group.completions[1].ids for group in with_mismatched(groups, 1)]
    assert sorted(lent) == sorted(group.completions[0].ids for group in groups)
    assert lent == [group.completions[1].ids for group in with_mismatched(groups, 1)]
    assert lent != [group.completions[1].ids for group in with_mismatched(groups, 2)]
    assert with_mismatched([], 1) == []


def test_a_lent_completion_costs_its_own_tokens_and_is_marked():
    groups = judged([3, 4, 5])
    lent = with_mismatched(groups, 1)
    assert [group.length for group in lent] == [group.length + 1 for group in groups]
    batch = pack(lent)
    assert batch["mismatched_C"].tolist() == [False, True] * 3
    assert batch["label_C"].tolist() == [True, True, False, False, True, True]
    # a group is never cut, so every micro-batch has both of its completions
    for part in micro_batches(lent, 3):
        assert pack(part)["mismatched_C"].float().mean() == 0.5


def test_demonstrations_are_the_chosen_the_desirable_and_the_best():
    pair = replace(random_groups(1, 1, 2)[0], chosen=1, rejected=0, margin=1.0)
    (shown,) = demonstrations([pair])
    assert shown == TokenGroup(pair.prompt_ids, (pair.completions[1],))
    good, bad = judged([3, 4])
    assert demonstrations([good, bad, shown]) == [good, shown]
    scored = [
        TokenGroup((1,), tuple(TokenCompletion((i,), score=s) for i, s in enumerate(scores)))
        for scores in ((1.0, 3.0, 2.0), (-2.0, -1.0, -1.0))
    ]
    assert [group.completions[0].ids for group in demonstrations(scored)] == [(1,), (1,)]
    solved, failed = (
        TokenGroup((1,), (TokenCompletion((5, 6), steps=((0, True), (1, right))),))
        for right in (True, False)
    )
    assert demonstrations([solved, failed]) == [solved]


def test_a_pair_is_two_verdicts_on_one_prompt():
    pair = replace(random_groups(1, 1, 3)[0], chosen=2, rejected=0, margin=1.0, probability=0.9)
    (judged,) = unpaired([pair])
    good, bad = judged.completions
    assert good == replace(pair.completions[2], label=True)
    assert bad == replace(pair.completions[0], label=False)
    assert (judged.chosen, judged.rejected, judged.margin, judged.probability) == (None,) * 4
    assert judged.prompt_ids == pair.prompt_ids
    assert unpaired([judged]) == [judged]
    assert pack([judged])["label_C"].tolist() == [True, False]


def test_good_and_bad_answers_are_lent_alike():
    pairs = [replace(g, chosen=0, rejected=1) for g in random_groups(1, 40, 2, longest=20)]
    judged = unpaired(pairs)
    judged = [replace(group, prompt_ids=(3 + index,)) for index, group in enumerate(judged)]
    verdict = {c.ids: c.label for group in judged for c in group.completions}
    lent = [group.completions[2] for group in with_mismatched(judged, 1)]
    assert all(completion.mismatched for completion in lent)
    assert sum(verdict[completion.ids] for completion in lent) in range(15, 26)


def test_a_lent_completion_is_cut_where_the_longest_row_ends():
    long_prompt = TokenGroup((3,) * 6, (TokenCompletion((7, 2), label=True),))
    long_answer = TokenGroup((4,), (TokenCompletion((8, 9, 10, 11, 12, 2), label=True),))
    cut, whole = (g.completions[1] for g in with_mismatched([long_prompt, long_answer], 1))
    assert (cut.ids, cut.finish) == ((8, 9), FinishReason.LENGTH)  # 6 + 2 tokens as before
    assert (whole.ids, whole.finish) == ((7, 2), FinishReason.STOP)


def test_a_pair_is_two_scores():
    pair = replace(random_groups(1, 1, 2)[0], chosen=1, rejected=0)
    (scored,) = as_scored([pair])
    assert [c.score for c in scored.completions] == [1.0, 0.0]
    assert [c.ids for c in scored.completions] == [c.ids for c in reversed(pair.completions)]
    assert pack([scored])["scores_C"].tolist() == [1.0, 0.0]
    assert "chosen_G" not in pack([scored])
    own = tuple(replace(c, score=s) for c, s in zip(pair.completions, (2.0, 7.0), strict=True))
    (kept,) = as_scored([replace(pair, completions=own)])
    assert [c.score for c in kept.completions] == [7.0, 2.0]
    assert as_scored([scored]) == [scored]


@pytest.mark.parametrize("other", [(None, None), (1.0, None), (2.0, 7.0)])
def test_pairs_keep_their_own_scores_together_or_not_at_all(other):
    pairs = [replace(group, chosen=0, rejected=1) for group in random_groups(1, 2, 2)]
    pairs = [
        replace(
            pair,
            completions=tuple(
                replace(c, score=s) for c, s in zip(pair.completions, scores, strict=True)
            ),
        )
        for pair, scores in zip(pairs, [(7.0, 7.0), other], strict=True)
    ]
    found = [[c.score for c in group.completions] for group in as_scored(pairs)]
    assert found == [[1.0, 0.0], [1.0, 0.0]]
    assert [c.score for c in as_scored(pairs[:1])[0].completions] == [7.0, 7.0]
