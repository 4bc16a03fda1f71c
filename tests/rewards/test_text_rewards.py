"""The rewards that read texts: their numbers by hand, and every field moves them as it says."""

from __future__ import annotations

import http.server
import json
import sys
import threading
import warnings

import pytest

from truing import rewards
from truing.errors import DataError, RolloutError, UsageError
from truing.rewards.base import Patience, score


def scores(spec, *texts, **columns):
    return score(rewards.make(spec), [""] * len(texts), texts, columns).values


# length


def test_length_near_a_target():
    spec = {"name": "length", "target": 4, "unit": "characters"}
    assert scores(spec, "", "ab", "abcd", "abcdef", "abcdefghijkl") == [0.0, 0.5, 1.0, 0.5, -1.0]


def test_a_band_around_the_target_scores_one():
    spec = {"name": "length", "target": 10, "unit": "words", "tolerance": 0.2}
    texts = [" ".join("x" * n) for n in (7, 8, 10, 12, 13, 20)]
    assert scores(spec, *texts) == pytest.approx([0.9, 1.0, 1.0, 1.0, 0.9, 0.2])


def test_a_slope_per_unit():
    shorter = {"name": "length", "slope": -0.5, "unit": "words"}
    assert scores(shorter, "", "one", "one  two\nthree") == [0.0, -0.5, -1.5]
    longer = {"name": "length", "slope": 2.0, "unit": "characters"}
    assert scores(longer, "", "abc") == [0.0, 6.0]
    both = {"name": "length", "slope": -1.0, "target": 2, "unit": "characters"}
    assert scores(both, "ab", "abcd") == [-1.0, -4.0]


def test_tokens_are_those_that_were_drawn():
    spec = {"name": "length", "slope": 1.0}
    assert rewards.make(spec).wants == {"completion_ids"}
    assert rewards.make(spec | {"unit": "words"}).wants == frozenset()
    assert scores(spec, "a", "b", completion_ids=[[1, 2, 3], []]) == [3.0, 0.0]
    with pytest.raises(DataError, match="completion_ids"):
        scores(spec, "a")


# format


def test_format_matches_from_end_to_end():
    spec = {"name": "format", "pattern": "a+"}
    assert scores(spec, "aaa", "baaa", "aaab", "", "A") == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_format_anywhere_or_in_capitals_accepts_more():
    spec = {"name": "format", "pattern": "a+"}
    texts = ("aaa", "baaab", "", "A")
    assert scores(spec | {"match": "anywhere"}, *texts) == [1.0, 1.0, 0.0, 0.0]
    assert scores(spec | {"ignore_case": True}, *texts) == [1.0, 0.0, 0.0, 1.0]


def test_a_dot_is_a_line_end_unless_told_otherwise():
    spec = {"name": "format", "pattern": "<a>.*</a>"}
    assert scores(spec, "<a>1\n2</a>", "<a>12</a>") == [1.0, 1.0]
    assert scores(spec | {"dot_matches_newline": False}, "<a>1\n2</a>", "<a>12</a>") == [0.0, 1.0]


# exact_match


def test_exact_match_with_a_column():
    texts = ("42", " 42\n", "42.", "The answer is 42", "")
    assert scores("exact_match", *texts, answer=["42"] * 5) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert scores("exact_match", "42", "42", answer=[42, 43]) == [1.0, 0.0]
    spec = {"name": "exact_match", "column": "label"}
    assert scores(spec, "x", "x", label=["x", "y"], answer=["y", "x"]) == [1.0, 0.0]
    with pytest.raises(DataError, match=r"'label'"):
        scores(spec, "x", answer=["x"])


def test_one_of_several_right_answers():
    assert scores("exact_match", "b", "c", answer=[["a", "b"], ["a", "b"]]) == [1.0, 0.0]


def test_what_has_no_right_answer_is_unscored():
    found = score(
        rewards.make("exact_match"), [""] * 4, ["", "", "", "y"], {"answer": [None, " ", [], "y"]}
    )
    assert found.values == [None, None, None, 1.0]
    assert found.faults == {"no_answer": 3}


@pytest.mark.parametrize(
    ("field", "text", "answer"),
    [
        ("ignore_case", "PARIS", "Paris"),
        ("ignore_punctuation", "Paris!", "Paris"),
        ("ignore_spaces", "New \n York", "New York"),
    ],
)
def test_each_normalisation_accepts_more(field, text, answer):
    for value, expected in ((False, 0.0), (True, 1.0)):
        spec = {"name": "exact_match", field: value}
        assert scores(spec, text, answer, answer=[answer] * 2) == [expected, 1.0]


def test_the_last_match_is_the_answer():
    spec = {"name": "exact_match", "extract": r"####\s*(\d+)"}
    texts = ("6 x 7\n#### 42", "#### 41\n#### 42", "#### 42\n#### 41", "42")
    assert scores(spec, *texts, answer=[42] * 4) == [1.0, 1.0, 0.0, 0.0]


# repetition


def test_repetition_is_the_share_of_n_grams_said_before():
    spec = {"name": "repetition", "n": 2, "unit": "words"}
    # a b, b a, a b, b c: three different ones of four
    assert scores(spec, "a b a B c", "a b c", "a", "") == [-0.25, 0.0, 0.0, 0.0]
    assert scores(spec, "a a a a a") == [-0.75]


def test_larger_n_forgives_more_and_the_unit_counts():
    text = "the cat and the cat"
    found = [scores({"name": "repetition", "n": n}, text)[0] for n in (1, 2, 3)]
    assert found == pytest.approx([-2 / 5, -1 / 4, 0.0])
    assert scores({"name": "repetition", "n": 1, "unit": "characters"}, "abab") == [-0.5]
    tokens = {"name": "repetition", "n": 2, "unit": "tokens"}
    assert rewards.make(tokens).wants == {"completion_ids"}
    assert scores(tokens, "a b", completion_ids=[[1, 2, 1, 2]]) == pytest.approx([-1 / 3])
    with pytest.raises(DataError, match="completion_ids"):
        scores(tokens, "a")


# json_schema

KEYS = {"name": "json_schema", "keys": ["a", "b"]}
NO_JSON = ("", "so", "{a: 1}", '{"a": NaN}', '{"a": 1} ok', "[" * 100_000, "9" * 10_000)


def test_json_with_all_its_keys():
    texts = ('{"a": 1, "b": null}', ' {"b": 1, "a": 2, "c": 3}\n', '{"a": 1}', '["a", "b"]', '"ab"')
    assert scores(KEYS, *texts) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert scores("json_schema", *texts, "null", "7") == [1.0] * 7


@pytest.mark.parametrize("partial", [False, True])
def test_what_is_no_json(partial):
    found = scores({"name": "json_schema", "partial": partial}, *NO_JSON)
    assert all(value < 1.0 for value in found)
    assert partial or found == [0.0] * len(NO_JSON)


def test_json_inside_other_text():
    texts = ('Sure: {"a": 1, "b": 2} there you are', 'Sure: [{"a": 1', '["b"] {"a": 1, "b": 2}')
    assert scores(KEYS, *texts) == [0.0, 0.0, 0.0]
    assert scores(KEYS | {"match": "anywhere"}, *texts) == [1.0, 0.0, 0.0]


def test_partial_credit_climbs_step_by_step():
    climb = (
        "I think",  # cannot be read at all
        '{"a" or so',  # read as far as the sixth of ten characters
        '{"a": 1} and',  # eight of twelve
        "{}",  # JSON, without keys
        '{"a": 1}',  # one key of two
        '{"a": 1, "b": 2}',
    )
    found = scores(KEYS | {"partial": True}, *climb)
    by_hand = [0.0, 0.5 / 3, 8 / 12 / 3, 2 / 3, 2.5 / 3, 1.0]
    assert found == pytest.approx(by_hand)
    assert found == sorted(found)
    assert scores(KEYS, *climb) == [0.0] * 5 + [1.0]


def test_a_schema_is_kept(tmp_path):
    pytest.importorskip("jsonschema")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    for given in (schema, str(file)):
        spec = {"name": "json_schema", "schema": given}
        assert scores(spec, '{"a": 1}', '{"a": "1"}', "{}", "7") == [1.0, 0.0, 0.0, 0.0]
        # the text is read (1), it is JSON (1), the schema holds (0 or 1)
        partial = scores(spec | {"partial": True}, '{"a": 1}', '{"a": "1"}')
        assert partial == pytest.approx([1.0, 2 / 3])


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "number", "multipleOf": 0.5}, "1" + "0" * 400),
        ({"$ref": "#"}, "7"),
        ({"items": {"$ref": "#"}}, "[" * 400 + "]" * 400),
    ],
)
def test_what_a_schema_cannot_be_held_against_does_not_stop_a_run(schema, text):
    """One completion that the checker chokes on is one completion that does not keep to it."""
    pytest.importorskip("jsonschema")
    spec = {"name": "json_schema", "schema": schema}
    assert scores(spec, text)[0] in (0.0, 1.0)


def test_a_schema_is_looked_up_nowhere_else():
    pytest.importorskip("jsonschema")
    asked = []

    class Serves(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Serves) as server, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jsonschema warns before it fetches
        threading.Thread(target=server.serve_forever, daemon=True).start()
        schema = {"$ref": f"http://127.0.0.1:{server.server_port}/schema.json"}
        reward = rewards.make({"name": "json_schema", "schema": schema})
        with pytest.raises(RolloutError, match=r"Unresolvable|Referencing"):
            score(reward, [""], ["{}"], patience=Patience(0))
        server.shutdown()
    assert asked == []


def test_without_the_package_a_schema_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    assert scores(KEYS, '{"a": 1, "b": 2}') == [1.0]
    with pytest.raises(RolloutError, match=r"truing\[json\]"):
        scores({"name": "json_schema", "schema": {"type": "object"}}, "{}")


# math


@pytest.fixture
def equal():
    pytest.importorskip("math_verify")
    return lambda text, answer, **fields: scores({"name": "math", **fields}, text, answer=[answer])


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        (r"so it is \boxed{\frac{1}{2}}", "1/2", 1.0),
        ("The answer is 0.5", r"$\frac{1}{2}$", 1.0),
        ("The answer is 0.25", "1/2", 0.0),
        ("I do not know", "1/2", 0.0),
        (r"$x^2 + 2x + 1$", "$(x+1)^2$", 1.0),
        ("1,000", 1000, 1.0),
    ],
)
def test_math_is_compared_as_math(equal, text, answer, expected):
    assert equal(text, answer) == [expected]


def test_more_decimal_places_are_stricter(equal):
    assert equal("0.3334", "1/3", rounding=3) == [1.0]
    assert equal("0.3334", "1/3", rounding=6) == [0.0]


def test_an_answer_that_takes_for_ever_is_unscored_and_the_next_is_not(equal):
    found = score(
        rewards.make({"name": "math", "timeout": 1.0, "column": "gold"}),
        [""] * 3,
        ["$9^{9^{9^{9}}}$", "2", "2"],
        {"gold": ["2", "2", "?"], "answer": ["3"] * 3},
    )
    assert found.values == [None, 1.0, None]
    assert found.reasons == ["undecided", None, "no_answer"]


def test_without_the_package_math_is_refused(monkeypatch):
    reward = rewards.make("math")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RolloutError, match=r"truing\[math\]"):
        score(reward, [""], ["1"], {"answer": ["1"]})


# fields


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("length", "give a target or a slope"),
        ({"name": "length", "target": 0}, "target"),
        ({"name": "length", "target": 5, "tolerance": -1}, "tolerance"),
        ({"name": "length", "slope": float("nan")}, "slope"),
        ({"name": "length", "slope": 1, "unit": "pages"}, "unit"),
        ("format", "pattern"),
        ({"name": "format", "pattern": "(a"}, "not a regular expression"),
        ({"name": "exact_match", "extract": "a"}, "one group"),
        ({"name": "exact_match", "extract": "(a"}, "not a regular expression"),
        ({"name": "repetition", "n": 0}, "n: "),
        ({"name": "json_schema", "schema": "nowhere.json"}, "cannot be read"),
        ({"name": "math", "timeout": 0}, "timeout"),
        ({"name": "math", "rounding": -1}, "rounding"),
    ],
)
def test_fields_out_of_range_are_refused(spec, words):
    with pytest.raises(UsageError, match=words):
        rewards.make(spec)


def test_a_schema_that_is_none_is_refused():
    pytest.importorskip("jsonschema")
    with pytest.raises(UsageError, match="not a JSON Schema"):
        rewards.make({"name": "json_schema", "schema": {"type": "pages"}})
