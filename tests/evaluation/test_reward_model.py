"""How often a reward model is right: whatever it does not tell apart it has not got right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from small_groups import random_groups
from truing.batch import Outputs
from truing.errors import NumericsError
from truing.evaluation.reward_model import judge
from truing.groups import TokenCompletion, TokenGroup


def by_first_id(scores):
    """A model whose score of a completion is found under its first id."""

    def compute(batch):
        first_C = batch.last_C - batch.lengths_C + 1
        return Outputs(scores_C=torch.tensor([scores[int(i)] for i in batch.token_ids_N[first_C]]))

    return compute


def test_a_tie_is_wrong_and_pairs_are_counted_in_any_packing():
    groups = random_groups(1, 4, 2, pairs=True)
    scores = {}
    wanted = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (2.0, -1.0)]  # chosen, rejected
    marked = []
    for number, (group, values) in enumerate(zip(groups, wanted, strict=True)):
        completions = list(group.completions)
        for place, value in zip((group.chosen, group.rejected), values, strict=True):
            first = 100 + 2 * number + place
            scores[first] = value
            ids = (first, *completions[place].ids[1:])
            completions[place] = replace(completions[place], ids=ids)
        marked.append(replace(group, completions=tuple(completions)))
    verdict = judge(by_first_id(scores), marked, token_budget=40)
    assert (verdict.accuracy.mean, verdict.accuracy.n, verdict.unit) == (0.5, 4, "pairs")
    found = {(row["chosen_score"], row["rejected_score"]) for row in verdict.rows}
    assert found == set(wanted)


def test_a_model_that_says_the_same_of_everything_is_refused():
    groups = random_groups(1, 4, 2, pairs=True)
    with pytest.raises(NumericsError, match="gives everything the score"):
        judge(lambda batch: Outputs(scores_C=torch.full((batch.size_C,), 0.7)), groups, 200)


def lists(*given):
    """Scored lists; the first id of each completion is its number."""
    numbers = iter(range(100, 200))
    return [
        TokenGroup((3,), tuple(TokenCompletion((next(numbers), 2), score=s) for s in scores))
        for scores in given
    ]


RISING = {number: float(number) for number in range(100, 200)}


def test_lists_of_equals_have_no_accuracy():
    verdict = judge(by_first_id(RISING), lists([1.0, 1.0], [0.0, 0.0, 0.0]), 40)
    assert (verdict.accuracy, verdict.unit, len(verdict.rows)) == (None, "lists", 2)


@pytest.mark.parametrize("count", [1, 3])
def test_lists_that_are_all_right_leave_a_doubt(count):
    accuracy = judge(by_first_id(RISING), lists(*[[0.0, 1.0, 2.0]] * count), 40).accuracy
    assert (accuracy.mean, accuracy.n) == (1.0, count)
    assert accuracy.low < 0.8
    assert accuracy.high == pytest.approx(1.0)


def test_one_score_alone_is_not_constant():
    solution = TokenGroup((3,), (TokenCompletion((4, 2), steps=((0, True),)),))
    verdict = judge(lambda batch: Outputs(scores_S=torch.tensor([0.7])), [solution], 40)
    assert (verdict.accuracy.mean, verdict.accuracy.n, verdict.unit) == (1.0, 1, "steps")
