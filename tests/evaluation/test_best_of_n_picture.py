"""The report's picture of Best-of-N: what is drawn, and where."""

from __future__ import annotations

import re

import pytest

from truing.evaluation import plots, report
from truing.evaluation.summary import Summary


def point(n: int, *, gold: float | None, kl: float, bound: float) -> dict:
    def interval(mean: float) -> dict:
        return {"mean": mean, "low": mean - 0.1, "high": mean + 0.2, "n": 8}

    return {
        "n": n,
        "kl_bound": bound,
        "kl_estimate": interval(kl),
        "proxy": interval(0.3 * n),
        "gold": None if gold is None else interval(gold),
    }


POINTS = [
    point(1, gold=0.5, kl=0.0, bound=0.0),
    point(2, gold=0.7, kl=0.15, bound=0.19),
    point(3, gold=0.6, kl=0.3, bound=0.43),
]
BLIND = [p | {"gold": None} for p in POINTS]


def test_gold_stands_beside_proxy_and_only_where_it_was_measured() -> None:
    both, blind = plots.best_of_n(POINTS, "bon"), plots.best_of_n(BLIND, "bon")
    assert "Gold reward of the best of n" in both
    assert "Proxy reward of the best of n" in both
    assert "Gold reward" not in blind
    assert plots.best_of_n(POINTS, "bon") == both


def test_powers_of_two_and_the_last_n_are_named() -> None:
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", plots.best_of_n(BLIND, "bon"))
    assert {"1", "2", "3"} <= set(texts)
    longer = [point(n, gold=None, kl=0.1 * n, bound=0.2 * n) for n in range(1, 12)]
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", plots.best_of_n(longer, "bon"))
    assert {"8", "11"} <= set(texts)
    assert not {"7", "9", "10"} & set(texts)


def test_the_page_has_a_section_for_it(summary: Summary) -> None:
    plain = report.render(summary, {})
    page = report.render(
        summary, {}, {"<b>": {"points": POINTS, "prompts": 7, "prompts_left_out": 0}}
    )
    assert "The best of n, for every n" not in plain
    assert "The best of n, for every n" in page
    assert "<title>&lt;b&gt;: the best of n</title>" in page
    assert "<b>: the best" not in page
    assert "over 7 of" not in page
    found = {"points": POINTS, "prompts": 7, "prompts_left_out": 2}
    assert "over 7 of 9 prompts" in report.render(summary, {}, {"bon": found})


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_the_faint_line_ends_at_the_bound(shift: float) -> None:
    """Without ties estimate and bound are one, and there is no line to see."""
    points = [p | {"kl_bound": p["kl_estimate"]["mean"] + shift} for p in BLIND]
    same = [p | {"kl_bound": p["kl_estimate"]["mean"]} for p in BLIND]
    assert (plots.best_of_n(points, "bon") == plots.best_of_n(same, "bon")) is (shift == 0.0)
