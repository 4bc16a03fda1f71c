"""The bench: what it refuses, what it counts, and that a switched-off technique is still right."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from types import SimpleNamespace

import pytest
import torch
from bench import against_trl, floor, limits, report, switches, tables
from bench.floor import Limit
from bench.job import Job, Setting, draw
from bench.our_side import before_shuffling, built, steps_of
from bench.pairing import BenchError, close, pair, refuse_disagreement, screen
from bench.rounds import Comparison, Run, fastest, spread

from truing.data.loader import Loader
from truing.errors import DataError, UsageError
from truing.planning.flops import Flops

needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="TRL is not installed"
)


@pytest.fixture
def folder():
    with against_trl.model_folder("random:llama") as place:
        yield place


@pytest.fixture
def data(tmp_path):
    """Pairs whose answers share a prompt that is longer than they are."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Say something about number {i}, please."}],
            "chosen": [{"role": "assistant", "content": f"It is {i} and no other." * (1 + i % 2)}],
            "rejected": [{"role": "assistant", "content": f"No, {i * 7}!"}],
        }
        for i in range(12)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(file)


def a_job(folder, data, work="dpo", rows=4, **more):
    drawn, left_out, stop_id = draw(data, folder, rows, seed=0)
    common = {"device": "cpu", "batch": 2, "stop_id": stop_id, "left_out": left_out}
    return Job(work, folder, rows=tuple(drawn), **{**common, **more})


def numbers(loss=0.5, grad_norm=2.0, ids=None):
    ids = [[[1, 2], [3], [4, 5]]] if ids is None else ids
    return {"ids": ids, "metrics": {"loss": loss, "grad_norm": grad_norm}}


JOB = Job("dpo", "", "cpu", (), 1, 2)


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize(("precision", "off"), [("float32", 1.005), ("bfloat16", 1.2)])
def test_nothing_is_timed_unless_both_compute_the_same(name, precision, off):
    same = numbers()
    assert refuse_disagreement(JOB, same, same, precision)["loss"] == [0.5, 0.5]
    other = {**same, "metrics": {**same["metrics"], name: same["metrics"][name] * off}}
    with pytest.raises(BenchError, match=name):
        refuse_disagreement(JOB, same, other, precision)


def test_bfloat16_is_judged_more_mildly_and_nan_never_agrees():
    assert close(1.0, 1.02, 0.05)
    assert not close(1.0, 1.02, 1e-3)
    assert not close(math.nan, math.nan, 0.05)


@pytest.mark.parametrize(
    ("work", "theirs"),
    [
        ("dpo", [[1, 2], [3], [4, 9]]),
        ("reward", [[1, 2, 3], [1, 2, 4]]),
        ("sft", [[1], [2, 3]]),
        ("grpo", [[1]]),
    ],
)
def test_other_token_ids_are_refused(work, theirs):
    job = dataclasses.replace(JOB, work=work)
    with pytest.raises(BenchError, match="token ids"):
        refuse_disagreement(job, numbers(), numbers(ids=[theirs]), "float32")


def test_two_zero_gradients_compare_nothing():
    silent = numbers(loss=0.0, grad_norm=0.0)
    with pytest.raises(BenchError, match="no gradient"):
        refuse_disagreement(JOB, silent, silent, "float32")


def test_a_missing_row_is_no_agreement():
    with pytest.raises(ValueError, match="zip"):
        refuse_disagreement(JOB, numbers(), numbers(ids=[]), "float32")


def test_greedy_tokens_must_agree_in_float32():
    job = dataclasses.replace(JOB, work="sample")
    ours, theirs = ({"ids": [], "greedy": [[i]]} for i in (1, 2))
    with pytest.raises(BenchError, match="greedy"):
        refuse_disagreement(job, ours, theirs, "float32")


def test_ratios_are_taken_round_by_round():
    rounds = (
        (Run(1.0, 8, 80, 10), Run(4.0, 8, 80, 40)),
        (Run(2.0, 8, 80, 30), Run(4.0, 8, 80, 20)),
        (Run(1.0, 8, 80, 20), Run(6.0, 8, 40, 20)),
    )
    found = Comparison("ours", "trl", rounds, (1, 2))
    assert found.ratios() == (4.0, 2.0, 6.0)
    assert found.ratios("tokens") == (4.0, 2.0, 12.0)
    assert found.rates(0) == (8.0, 4.0, 8.0)
    assert (found.peak(0), found.peak(1), found.seconds(1)) == (30, 40, 4.0)
    assert found.dump()["memory_ratio"] == 0.75


def test_spread_and_the_fastest():
    assert spread([3.0, 1.0, 2.0, 10.0]) == (2.5, 1.0, 10.0)
    assert fastest({"slow": Run(2.0, 8, 0, 0), "fast": Run(1.0, 8, 0, 0)}) == "fast"


def test_the_parts_of_a_run_sum_up_to_it():
    least = Limit(Flops(linear=300, attention=100, head=200), rate=100.0)
    times = {"linear": 5.0, "attention": 4.0, "logits": 3.0, "optimizer": 1.0}
    parts = floor.split(20.0, times, least)
    assert sum(parts.values()) == pytest.approx(20.0)
    assert parts["arithmetic floor"] == 6.0
    assert parts["logits above its floor"] == 1.0
    assert parts["rest"] == 7.0
    without = floor.split(20.0, {**times, "logits": 0.0}, least)
    assert sum(without.values()) == pytest.approx(20.0)
    assert without["linear above its floor"] == 0.0  # the head's products are among them


def event(name, seconds, parent=None):
    return SimpleNamespace(name=name, cpu_time_total=seconds * 1e6, cpu_parent=parent)


def test_an_operator_is_counted_in_the_outermost_part():
    engine = event("autograd::engine::evaluate_function: _AttentionBackward", 9)
    attention = event("_AttentionBackward", 8, engine)
    inner = event("aten::matmul", 6, attention)
    innermost = event("aten::mm", 5, inner)
    outer = event("aten::linear", 3)
    found = floor.times_of([engine, attention, inner, innermost, outer, event("aten::add", 1)])
    assert found == {"attention": 8, "logits": 0, "optimizer": 0, "linear": 3}


def test_the_profile_finds_every_part(folder, data):
    job = a_job(folder, data)
    steps = steps_of(job, built(job, Setting("ours", "float32")))
    _, seconds, times = floor.profiled(steps[0], "cpu")
    assert all(times.values())
    assert sum(times.values()) < seconds


def test_rows_come_in_the_order_of_the_job(folder, data):
    job = a_job(folder, data, rows=10)
    groups = [row.group("dpo") for row in job.rows]
    arranged = before_shuffling(groups, seed=3)
    assert arranged != groups
    assert [g for batch in Loader(arranged, 4, 3).epoch(0) for g in batch] == groups


def test_a_job_survives_its_way_to_the_worker(folder, data):
    job = a_job(folder, data)
    assert Job.load(json.loads(json.dumps(job.dump()))) == job


def test_rows_that_are_tokenised_otherwise_as_one_text_are_left_out(folder, data, monkeypatch):
    fine, left_out, _ = draw(data, folder, 3, seed=0)
    assert left_out["tokenised otherwise as one text"] == 0
    again, _, _ = draw(data, folder, 3, seed=1)
    assert fine != again
    with pytest.raises(DataError, match="13 rows are wanted, and 12"):
        draw(data, folder, 13, seed=0)


def with_counts(monkeypatch):
    """`switches.replace` that is undone after the test, and counts uses of what it puts in."""
    uses = []

    def replace(module, name, new):
        was = getattr(module, name)

        def counted(*args, **more):
            uses.append(name)
            return new(*args, **more)

        monkeypatch.setattr(module, name, counted)
        return was

    monkeypatch.setattr(switches, "replace", replace)
    return uses


@pytest.mark.parametrize("technique", switches.OFF)
def test_a_technique_switched_off_leaves_the_same_numbers(technique, folder, data, monkeypatch):
    job = a_job(folder, data, batch=4)
    full = steps_of(job, built(job, Setting("ours", "float32")))[0]()["metrics"]
    uses = with_counts(monkeypatch)
    switches.OFF[technique]()
    without = steps_of(job, built(job, Setting("ours", "float32")))[0]()["metrics"]
    assert uses
    assert without["loss"] == pytest.approx(full["loss"], rel=1e-5)
    assert without["grad_norm"] == pytest.approx(full["grad_norm"], rel=1e-4)


def test_a_technique_that_has_moved_cannot_be_switched_off():
    with pytest.raises(AttributeError):
        switches.replace(torch, "no_such_name", None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--work", "dpo", "--pairs", "0"], "--pairs"),
        (["--work", "dpo", "--repeats", "0"], "--repeats"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, said):
    with pytest.raises(UsageError, match=said):
        against_trl.read(against_trl.parser("bench", None), arguments)


def test_missing_data_is_one_line_and_an_exit_code(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    command = ["--work", "dpo", "--model", "random:llama", "--data", "nowhere.jsonl"]
    assert against_trl.main(command) == DataError.exit_code
    said = capsys.readouterr().err
    assert "nowhere.jsonl: no such file" in said
    assert "--data" in said


def test_without_trl_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert against_trl.main(["--work", "dpo", "--model", "random:llama"]) == 1
    assert "TRL is not installed" in capsys.readouterr().err


def test_unknown_work_is_refused():
    with pytest.raises(SystemExit):
        against_trl.read(against_trl.parser("bench", None), ["--work", "ppo"])


def test_every_candidate_is_told_apart(folder, data):
    for work in ("dpo", "reward", "sft", "grpo", "sample"):
        first, *after = against_trl.matches(a_job(folder, data, work))
        labels = [setting.label for setting in first.theirs]
        assert len(set(labels)) == len(labels) > 1
        assert all(s.reference == first.ours.reference for s in first.theirs)
        # what comes after takes the fastest of the first, with the reference as ours has it
        assert [match.theirs for match in after] == [[]] * (work == "dpo")


def test_a_match_without_candidates_takes_the_fastest_before(folder, data, monkeypatch):
    tried = []

    def screened(job, candidates, say):
        tried.append([setting.label for setting in candidates])
        speeds = {"autocast": 3.0}
        return {s: Run(1.0, speeds.get(s.precision, 1.0), 1, 1) for s in candidates}, {}

    def paired(job, ours, theirs, repeats, say):
        run = Run(1.0, 1, 1, 1)
        return Comparison(ours.label, theirs.label, ((run, run),), (1, 1)), {"floor_seconds": 1.0}

    monkeypatch.setattr(against_trl, "screen", screened)
    monkeypatch.setattr(against_trl, "pair", paired)
    found = against_trl.compare(a_job(folder, data, "dpo"), 1, lambda line: None)
    assert tried[1:] == [["trl autocast cached reference"]]
    labels = [pair["theirs"]["label"] for pair in found["pairs"]]
    assert labels == ["trl autocast", "trl autocast + our allocator setting", *tried[1]]


def test_limits_are_limits():
    assert limits.kept({"value": 1.0, "limit": 1.0})
    assert not limits.kept({"value": 1.1, "limit": 1.0})
    assert not limits.kept({"value": math.nan, "limit": 1.0})


def test_a_long_prompt_is_measured(folder):
    found = limits.long_prompt(folder, "cpu")
    assert found["tokens"] == 512 - 64 + 8 * 64
    assert found["value"] > 0


def result():
    run = Run(2.0, 8, 800, 2**30)
    compared = Comparison(
        "ours bfloat16", "trl float32", ((run, run._replace(seconds=8.0)),), (1, 1)
    )
    parts = {"split": {"arithmetic floor": 1.0, "rest": 3.0}}
    return {
        "work": "dpo",
        "model": "m",
        "device": "cpu",
        "rows": 8,
        "batch": 4,
        "left_out": {"too long": 3},
        "machine": {
            "date": "2026-01-01",
            "commit": "abc",
            "cpu": "a cpu",
            "flags": ["avx2"],
            "cores": 2,
            "memory_gib": 8.0,
            "gpu": None,
            "packages": {"torch": "2", "trl": None},
        },
        "tried": {"trl float32": {**run._asdict(), "rate": 1.0}},
        "pairs": [
            {
                "name": "reference online",
                **compared.dump(),
                "parts": parts,
                "fraction_of_limit": 0.25,
            }
        ],
    }


def test_tables_say_what_was_measured(tmp_path):
    said = report.whole(result())
    assert "| reference online: ours bfloat16 / trl float32 | 4 (4-4) | 1 (1-1) | 4 (4-4) |" in said
    assert "| rest | 75.0 |" in said
    assert "torch 2, commit abc" in said
    (tmp_path / "dpo.json").write_text(json.dumps([result()]))
    dpo, sft = "<!-- table: dpo -->\nold\n<!-- end -->", "<!-- table: sft -->\n<!-- end -->"
    page = f"Before.\n{dpo}\nBetween.\n{sft}"
    new = tables.filled(page, tmp_path)
    assert said in new
    assert "old" not in new
    assert "Not measured yet" in new.partition("Between.")[2]
    assert tables.filled(new, tmp_path) == new


def test_the_page_is_current():
    assert tables.main(["--check"]) == 0


@pytest.mark.slow
@needs_trl
@pytest.mark.parametrize("work", ["dpo", "reward", "sft", "grpo"])
def test_both_sides_compute_the_same_in_float32(work, folder, data):
    drawn = {"completions": 2, "max_completion_length": 5} if work == "grpo" else {}
    job = a_job(folder, data, work, **drawn)
    said = []
    trl = Setting("trl", "float32")
    runs, compared = screen(job, [trl], said.append)
    assert runs[trl].units == (8 if work == "grpo" else 4)
    mine, other = compared[trl.label]["grad_norm"]
    assert mine == pytest.approx(other, rel=1e-3)
    assert mine > 1e-3


@pytest.mark.slow
def test_ours_beside_generate_and_where_the_time_goes(folder, data):
    job = a_job(folder, data, "sample", batch=4, completions=2, max_completion_length=6)
    ours, theirs = Setting("ours", "float32"), Setting("transformers", "float32")
    found, parts = pair(job, ours, theirs, 2, lambda line: None)
    assert [run.units for both in found.rounds for run in both] == [8] * 4
    assert sum(parts["split"].values()) > parts["floor_seconds"] > 0
    assert found.ours == "ours float32"
