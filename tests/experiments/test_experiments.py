"""Every experiment at its smallest: its results are whole and come again, and where theory promises
something, it holds. What an experiment hopes for is not asserted."""

from __future__ import annotations

import json
import math
from functools import cache

import pytest
import torch

from experiments import (
    _common,
    chosen_likelihood,
    forgetting,
    kl_sweep,
    length,
    mode_collapse,
    overoptimisation,
    shift,
    tables,
)
from truing import exact

SMALL = {
    kl_sweep: kl_sweep.Plan(
        betas=(0.0, 0.5, 3.0), methods=("ppo", "dpo"), rollouts=10, answers=64, pairs=512,
        dpo_epochs=12,
    ),
    overoptimisation: overoptimisation.Plan(
        pairs=(64,), sizes=(1, 2, 4, 16, 64, 256), rollouts=12, answers=64, dpo_steps=20,
        vocabulary=4, max_length=3,
    ),
    chosen_likelihood: chosen_likelihood.Plan(
        steps=20, pairs=512, sentences=32, sft_epochs=2, network_steps=3, methods=("dpo", "dpop")
    ),
    length: length.Plan(pairs=256, rollouts=3, answers=64, dpo_epochs=2, max_length=4),
    shift: shift.Plan(pairs=128, dpo_epochs=3, rollouts=3, answers=64, max_length=3),
    forgetting: forgetting.Plan(
        sentences=24, sft_epochs=1, rollouts=2, answers=4, shares=(0.5,)
    ),
    mode_collapse: mode_collapse.Plan(
        pairs=256, rollouts=4, answers=64, epochs=2, vocabulary=3, max_length=3
    ),
}  # fmt: skip
every = pytest.mark.parametrize("experiment", SMALL, ids=lambda e: e.__name__.split(".")[-1])


@cache
def found(experiment):
    """Two seeds of the smallest version, through JSON as it is stored."""
    torch.set_num_threads(1)
    return json.loads(json.dumps(experiment.run(2, SMALL[experiment]), allow_nan=False))


@every
def test_it_ends_in_a_table(experiment):
    lines = experiment.table(found(experiment)).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 3
    assert len({line.count("|") for line in rows}) <= 2  # at most two tables


@every
def test_the_same_seed_gives_the_same_numbers(experiment):
    again = json.loads(json.dumps(experiment.run(1, SMALL[experiment])))
    assert first_seed(again) == pytest.approx(first_seed(found(experiment)), rel=1e-6, abs=1e-9)


def first_seed(node):
    """Every number of the first seed, in order."""
    if isinstance(node, dict) and "values" in node:
        return [node["values"][0]]
    if isinstance(node, dict) and node.get("seed", 0) != 0:
        return []
    if isinstance(node, dict):
        # what is gathered over seeds in other ways is not of one seed
        return [
            x
            for k, v in node.items()
            if k not in ("mean", "se", "turning", "fitted_peak")
            for x in first_seed(v)
        ]
    if (
        isinstance(node, list)
        and node
        and isinstance(node[0], list)
        and isinstance(node[0][0], dict)
    ):
        return first_seed(node[0])  # one list a seed
    if isinstance(node, list):
        return [x for v in node for x in first_seed(v)]
    return [float(node)] if isinstance(node, int | float) else []


def test_no_method_is_above_the_frontier_and_a_higher_price_buys_less_kl():
    result = found(kl_sweep)
    for row in result["rows"]:
        assert min(row["below_frontier"]["values"]) > -1e-6
    line = result["optima"]
    assert line["kl"] == sorted(line["kl"], reverse=True)
    assert line["reward"] == sorted(line["reward"], reverse=True)
    for method in ("ppo", "dpo"):
        kls = [row["kl"]["mean"] for row in result["rows"] if row["method"] == method]
        assert kls == sorted(kls, reverse=True)
    assert result["reference"]["kl"] == 0.0


def test_best_of_n_is_exact_and_every_curve_starts_at_the_reference():
    for curve in found(overoptimisation)["curves"]:
        assert curve["distance"][0] == pytest.approx(0, abs=1e-3)
        assert curve["gold"][0] == pytest.approx(0, abs=1e-5)
        assert curve["proxy"][0] == pytest.approx(0, abs=1e-5)
        if curve["method"] == "best_of_n":
            assert curve["proxy"] == sorted(curve["proxy"])
            bounds = [exact.kl_bound(n) ** 0.5 for n in SMALL[overoptimisation].sizes]
            assert all(d <= b + 1e-6 for d, b in zip(curve["distance"], bounds, strict=True))


def test_o23_holds_along_the_whole_run():
    for points in found(chosen_likelihood)["law"]:
        assert [p["step"] for p in points] == [0, 10, 20]
        for point in points:
            assert point["chosen"] == pytest.approx(point["law"], abs=1e-8)
            both = point["chosen"] + point["rejected"]
            assert both == pytest.approx(
                -2 * chosen_likelihood.BETA * point["forward_kl"], abs=1e-8
            )
        assert points[-1]["margin"] > points[0]["margin"] == 0.0
        assert points[-1]["forward_kl"] > 1e-3


def test_a_gain_is_divided_without_remainder():
    result = found(length)
    assert result["longer_wins"] == pytest.approx(0.6, abs=1e-6)
    assert result["reference"]["gold"] == pytest.approx(0, abs=1e-9)
    for row in result["methods"]:
        for gain, within, by_length in zip(
            *(row[name]["values"] for name in ("gain", "within_length", "by_length")), strict=True
        ):
            assert gain == pytest.approx(within + by_length, abs=1e-8)


def test_half_of_the_answers_are_islands_and_dpos_loss_does_not_see_them():
    rows = {row["name"]: row for row in found(shift)["runs"]}
    assert min(rows["dpo, half"]["islands"]["values"]) > max(
        rows["dpo, whole"]["islands"]["values"]
    )
    for row in rows.values():
        assert all(0 <= share <= 1 for share in row["uncovered"]["values"])
    torch.manual_seed(0)
    reference = torch.randn(8).double().log_softmax(-1)
    law = torch.randn(8).double().log_softmax(-1)
    covered = torch.arange(8) < 4
    pairs = torch.outer(covered.double(), covered.double())
    wins = exact.bradley_terry(torch.randn(8).double())
    moved = (law + 3.0 * ~covered).log_softmax(-1)
    assert moved.exp()[~covered].sum() > law.exp()[~covered].sum() + 0.1
    before, after = (exact.dpo_loss(x, reference, wins, pairs, 0.1).item() for x in (law, moved))
    assert after == pytest.approx(before, abs=1e-12)


def test_forgetting_starts_where_teaching_ended():
    result = found(forgetting)
    curves = {curve["name"]: curve["points"] for curve in result["curves"]}
    assert set(curves) == {"ptx_coef 0", "ptx_coef 0.3", "averaged weights"}
    starts = [curves[name][0]["loss"]["values"] for name in ("ptx_coef 0", "ptx_coef 0.3")]
    assert starts[0] == starts[1] == result["start"]["values"]
    for points in curves.values():
        for point in points:
            assert all(0 <= reward <= 1 for reward in point["reward"]["values"])
    assert (
        curves["ptx_coef 0"][-1]["loss"]["values"] != curves["ptx_coef 0.3"][-1]["loss"]["values"]
    )


def test_the_expected_number_of_different_answers():
    law = torch.tensor([0.5, 0.3, 0.2]).double()
    by_hand = sum(1 - (1 - p) ** 4 for p in law.tolist())
    assert mode_collapse.different(law.log(), 4) == pytest.approx(by_hand)
    assert mode_collapse.different(torch.tensor([0.0, -80.0]).double(), 16) == pytest.approx(1.0)
    for row in found(mode_collapse)["methods"]:
        assert all(1 / 16 <= share <= 1 for share in row["different"]["values"])
        assert all(0 <= h <= math.log(15) for h in row["entropy"]["values"])


def test_a_command_writes_what_it_found_and_the_page_shows_it(tmp_path, capsys):
    file = tmp_path / "small.tiny.json"
    result = {"rows": [], **{k: v for k, v in found(kl_sweep).items() if k != "rows"}}

    def run(seeds):
        return result | {"rows": found(kl_sweep)["rows"][:seeds]}

    assert (
        _common.main(
            "kl_sweep", {"tiny": run}, kl_sweep.table, ["--seeds", "2", "--json", str(file)]
        )
        == 0
    )
    stored = json.loads(file.read_text())
    assert (stored["experiment"], stored["seeds"], stored["size"]) == ("kl_sweep", 2, "tiny")
    assert stored["machine"]["packages"]["torch"] == torch.__version__
    assert stored["found"] == run(2)
    assert kl_sweep.table(run(2)) in capsys.readouterr().out
    file.rename(tmp_path / "kl_sweep.tiny.json")
    page = (
        "a\n<!-- table: kl_sweep.tiny -->\n<!-- end -->\n<!-- table: shift.tiny -->\n<!-- end -->"
    )
    new = tables.filled(page, tmp_path)
    assert kl_sweep.table(run(2)) in new
    assert "Not run yet: `python -m experiments.shift`" in new
    assert tables.filled(new, tmp_path) == new


def test_the_page_is_current_and_shows_every_experiment():
    assert tables.main(["--check"]) == 0
    shown = {name for _, name, _, _ in tables.PLACE.findall(tables.PAGE.read_text())}
    assert shown >= {e.__name__.split(".")[-1] for e in SMALL}
