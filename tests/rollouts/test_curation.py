"""Scored completions to rows: who is chosen, what is left out, and nothing lost uncounted."""

from __future__ import annotations

import math
from random import Random

import pytest
from pydantic import ValidationError

from truing.batch import combine
from truing.config import Online
from truing.data.packing import pack
from truing.groups import TokenCompletion, TokenGroup
from truing.objectives import find as find_objective
from truing.objectives import names as objective_names
from truing.rollouts import curation
from truing.training.arrange import WAYS


def group(*scores, reference=(), prompt=7):
    """A group whose i-th completion is token 10 + i; `reference` are those the reference drew."""
    completions = (
        TokenCompletion((10 + i, 2), score=score, of_reference=i in reference)
        for i, score in enumerate(scores)
    )
    return TokenGroup((prompt,), tuple(completions))


def curated(name, *groups, seed=0, **knobs):
    """(rows, metrics) of a rule."""
    rows, metrics = curation.find(name)(**knobs)(groups, seed)
    return rows, combine([metrics])


def names_of(row):
    """Which completions a row holds, by their place in the group they came from."""
    return [completion.ids[0] - 10 for completion in row.completions]


def sides(row):
    """(chosen, rejected)."""
    named = names_of(row)
    return named[row.chosen], named[row.rejected]


def test_the_best_is_chosen_against_the_worst():
    rows, metrics = curated("pairs", group(1.0, 4.0, -2.0, 3.0), group(0.5, 0.25))
    assert [sides(row) for row in rows] == [(1, 2), (0, 1)]
    assert [row.margin for row in rows] == [6.0, 0.25]
    assert metrics == {"curation/kept_fraction": 1.0, "curation/ties": 0.0}


def test_a_pair_says_how_likely_its_scores_make_it():
    (row,), _ = curated("pairs", group(0.0, math.log(3)))
    assert row.probability == pytest.approx(0.75)
    batch = pack([row])
    assert batch["margin_G"].tolist() == pytest.approx([math.log(3)])
    assert batch["probability_G"].tolist() == pytest.approx([0.75])


def test_a_tie_gives_no_pair_and_is_counted():
    rows, metrics = curated("pairs", group(1.0, 1.0), group(0.0, 1.0), group(2.0, 2.0, 2.0))
    assert [sides(row) for row in rows] == [(1, 0)]
    assert metrics == {
        "curation/kept_fraction": pytest.approx(1 / 3),
        "curation/ties": pytest.approx(2 / 3),
    }


def test_a_larger_gap_calls_more_a_tie():
    groups = [group(0.0, 0.5), group(0.0, 1.0), group(0.0, 2.0)]
    counts = [len(curated("pairs", *groups, min_gap=gap)[0]) for gap in (0.0, 0.5, 1.5, 9.0)]
    assert counts == [3, 2, 1, 0]


def test_all_pairs_are_those_that_differ():
    rows, metrics = curated("pairs", group(1.0, 4.0, 1.0, 3.0), selection="all")
    assert {sides(row) for row in rows} == {(1, 0), (3, 0), (1, 2), (3, 2), (1, 3)}
    assert metrics["curation/ties"] == pytest.approx(1 / 6)
    assert curation.find("pairs")(selection="all").most(4) == 6
    assert curation.find("pairs")().most(4) == 1


def test_random_pairs_come_up_alike_and_are_ordered_by_score():
    one = group(1.0, 4.0, 2.0)
    seen = [sides(curated("pairs", one, seed=s, selection="random")[0][0]) for s in range(600)]
    assert set(seen) == {(1, 0), (1, 2), (2, 0)}
    assert all(150 < seen.count(pair) < 250 for pair in set(seen))
    again = [sides(curated("pairs", one, seed=s, selection="random")[0][0]) for s in range(600)]
    assert seen == again


def test_completions_that_lost_their_rival_make_no_pair():
    rows, metrics = curated("pairs", group(1.0))
    assert rows == []
    assert metrics == {"curation/kept_fraction": 0.0}


def test_the_best_are_imitated():
    rows, metrics = curated("best", group(1.0, 4.0, -2.0, 3.0), group(0.5, 0.25))
    assert [names_of(row) for row in rows] == [[1], [0]]
    assert metrics == {"curation/kept_fraction": 1.0, "curation/ties": 0.0}
    rows, _ = curated("best", group(1.0, 4.0, -2.0, 3.0), take=3)
    assert names_of(rows[0]) == [1, 3, 0]
    assert not {"chosen_G", "label_C"} & set(pack(rows).columns)


def test_below_the_threshold_nothing_is_imitated():
    groups = [group(1.0, 1.0, 0.0), group(0.0, 0.0), group(1.0, 1.0)]
    rows, metrics = curated("best", *groups, threshold=1.0, take=5)
    assert [names_of(row) for row in rows] == [[0, 1], [0, 1]]
    assert metrics["curation/kept_fraction"] == pytest.approx(2 / 3)
    rows, metrics = curated("best", *groups)
    assert [names_of(row) for row in rows] == [[0]]
    assert metrics["curation/ties"] == pytest.approx(2 / 3)


def test_verdicts_are_against_the_mean_of_the_group_or_a_threshold():
    rows, metrics = curated("verdicts", group(1.0, 4.0, -2.0, 1.0), group(0.1, 0.1, 0.1))
    assert [(names_of(row), [c.label for c in row.completions]) for row in rows] == [
        ([1, 2], [True, False])
    ]
    assert metrics == {
        "curation/kept_fraction": 0.5,
        "curation/ties": pytest.approx(5 / 7),
    }
    assert pack(rows)["label_C"].tolist() == [True, False]
    rows, _ = curated("verdicts", group(1.0, 4.0, -2.0, 1.0), threshold=2.0)
    assert [c.label for c in rows[0].completions] == [False, True, False, False]


def test_whole_groups_keep_their_scores_unless_they_rank_nothing():
    rows, metrics = curated("scored", group(1.0, 4.0, -2.0), group(3.0, 3.0), group(1.0))
    assert [row.scores for row in rows] == [[1.0, 4.0, -2.0]]
    assert metrics == {
        "curation/kept_fraction": pytest.approx(1 / 3),
        "curation/ties": 0.5,
    }


def test_the_policy_meets_the_reference_one_by_one():
    rows, metrics = curated(
        "against_reference",
        group(1.0, 5.0, 2.0, 3.0, reference=(2, 3)),
        group(1.0, 1.0, reference=(1,)),
        group(0.0, 1.0, reference=(1,)),
    )
    assert [sides(row) for row in rows] == [(2, 0), (1, 3), (1, 0)]
    assert pack(rows)["of_reference_C"].tolist() == [True, False, False, True, True, False]
    assert metrics == {
        "curation/kept_fraction": pytest.approx(2 / 3),
        "curation/ties": 0.25,
        "curation/wins": pytest.approx(1 / 3),
    }
    near = group(1.0, 5.0, 2.0, 3.0, reference=(2, 3))
    assert [sides(row) for row in curated("against_reference", near, min_gap=1.0)[0]] == [(1, 3)]


@pytest.mark.parametrize("name", curation.names())
def test_whatever_the_scores_nothing_is_made_up_or_turned_round(name):
    draw = Random(name)
    groups = [
        group(*(draw.choice([0.0, 0.5, 1.0]) for _ in range(2 * draw.randint(1, 3))), prompt=i)
        for i in range(60)
    ]
    groups = [
        group(*g.scores, reference=range(len(g.scores) // 2, 9), prompt=i)
        if curation.find(name).draws_from_reference
        else g
        for i, g in enumerate(groups)
    ]
    rows, metrics = curated(name, *groups)
    assert 0 < metrics["curation/ties"] < 1
    assert {row.prompt_ids for row in rows} <= {g.prompt_ids for g in groups}
    by_prompt = {g.prompt_ids: g for g in groups}
    for row in rows:
        origin = by_prompt[row.prompt_ids]
        assert {c.ids for c in row.completions} <= {c.ids for c in origin.completions}
        assert all(c.score == origin.scores[c.ids[0] - 10] for c in row.completions)
        if row.chosen is not None:
            assert row.scores[row.chosen] > row.scores[row.rejected]
    kept = len({row.prompt_ids for row in rows})
    assert metrics["curation/kept_fraction"] == pytest.approx(kept / len(groups))


@pytest.mark.parametrize("name", curation.names())
def test_every_rule_makes_rows_someone_learns_from_and_says_what_its_fields_are(name):
    rule = curation.find(name)
    assert any(rule.makes in ways for ways in WAYS.values())
    for key, field in rule.__pydantic_fields__.items():
        assert len(field.description or "") > 20, key
        for nonsense in (math.nan, "much", -1 if key != "threshold" else [1]):
            with pytest.raises(ValidationError):
                rule(**{key: nonsense})
    with pytest.raises(ValidationError):
        rule(no_such_knob=1)


def test_no_key_has_two_owners():
    stage = {f.alias or n for n, f in Online.model_fields.items()}
    for name in curation.names():
        own = set(curation.find(name).__dataclass_fields__)
        assert not own & stage
        for objective in map(find_objective, objective_names()):
            assert not own & set(objective.__dataclass_fields__), objective
    for objective in map(find_objective, objective_names()):
        if objective.credit is None:
            assert not stage & set(objective.__dataclass_fields__), objective
