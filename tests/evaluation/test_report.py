"""The page shows what the summary says, safely, offline, and the same bytes every time."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from pydantic import BaseModel

from truing import objectives
from truing.errors import CheckpointError
from truing.evaluation import plots, report
from truing.evaluation import summary as schema
from truing.evaluation.summary import Summary
from truing.pipeline.summarise import verdicts
from truing.rollouts import credit

Metrics = dict[str, list[dict[str, float]]]

SECTIONS = [
    "The policies, side by side",
    "Reward against distance",
    "What was gained",
    "The reward model",
    "PPO while it trained",
    "DPO while it trained",
    "SFT while it trained",
    "Checks before the first update",
    "What each stage cost",
    "Samples",
    "Run it again",
]
NOT_SHOWN = {("Summary", "schema_version"): "says how to read the file, not what was found"}
DRAWN_ONLY = {("PolicyResult", "proxy_gain"): plots.gains}
HOSTILE = "</p><script>alert('x')</script><img src=https://evil.example/x onerror=alert(1)>&amp;"


class Page(HTMLParser):
    """What a browser would find: tags with attributes, the text of every cell and section."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.balanced = True
        self.headings: list[str] = []
        self.cells: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        if tag == "h2":
            self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.balanced &= bool(self.open) and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.cells[-1] += f" {data.strip()}" if data.strip() else ""
        if "h2" in self.open:
            self.headings[-1] += data


def pictures(page: str) -> list[ElementTree.Element]:
    """The SVG elements, each parsed on its own."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.S)]


def titles(page: str) -> list[str]:
    return [picture.findtext("{*}title") or "" for picture in pictures(page)]


def longest_path(svg: str) -> int:
    """Points of the longest line."""
    return max(len(re.findall(r"[ML]", path)) for path in re.findall(r' d="([^"]*)"', svg))


@functools.cache
def rendered(summary: str, metrics: str) -> str:
    """The page of a summary and metrics given as JSON: drawn once."""
    return report.render(Summary.model_validate_json(summary), json.loads(metrics))


@pytest.fixture
def page(summary: Summary, metrics: Metrics) -> str:
    """The whole page."""
    return rendered(summary.model_dump_json(), json.dumps(metrics))


def test_sections_in_their_order(output: Path) -> None:
    path = report.write_report(output)
    assert path == output / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.headings == SECTIONS
    assert page.balanced
    assert page.open == []


def test_every_section_opens_with_what_to_look_at(page: str) -> None:
    opened = re.findall(r'</h2>\s*<p class="lead"><b>\S', page)
    assert len(opened) == len(SECTIONS)


def test_the_same_input_gives_the_same_bytes(output: Path) -> None:
    first = report.write_report(output).read_bytes()
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "path", "xtick.top": True}):
        second = report.write_report(output).read_bytes()
    assert first == second
    assert dict(matplotlib.rcParams) == before


def test_nothing_is_requested_and_nothing_runs(page: str) -> None:
    found = Page(page)
    for tag, attributes in found.tags:
        assert tag not in {"script", "iframe", "img", "link", "object", "embed", "form", "base"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href", "action", "srcset"}:
                assert (value or "").startswith("#")
            elif not name.startswith("xmlns"):
                assert "://" not in (value or "")
    assert re.findall(r"url\((?!#)|@import", page) == []
    policy = [a["content"] for _, a in found.tags if "http-equiv" in a]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_hostile_text_arrives_as_text(summary: Summary, page: str) -> None:
    harmless = {tag for tag, _ in Page(page).tags}
    sample = summary.samples[0]
    sample.prompt = sample.completions["ppo"].text = sample.completions["dpo"].finish = HOSTILE
    summary.name = summary.policies[2].label = summary.policies[2].stage = HOSTILE
    summary.verdicts[0] = summary.machine["cores"] = summary.stages[0].method = HOSTILE
    summary.first_step[HOSTILE] = {HOSTILE: 1.0}
    text = report.render(summary, {})
    found = Page(text)
    assert found.balanced
    assert {tag for tag, _ in found.tags} <= harmless
    assert all(not name.startswith("on") for _, attrs in found.tags for name in attrs)
    assert "&lt;script&gt;alert(" in text


def test_a_bound_is_never_shown_as_a_kl(page: str) -> None:
    cells = [cell.strip() for cell in Page(page).cells]
    assert "<= 1.20 bound" in cells
    assert not any(cell.startswith("1.20") for cell in cells)
    assert "best_of_8 (bound: at most)" in page


def test_not_measured_is_a_dash(page: str) -> None:
    cells = [cell.strip() for cell in Page(page).cells]
    base = cells.index("● base stage model")
    assert cells[base + 8 : base + 12] == ["–"] * 4


def test_cut_off_completions_are_marked(page: str) -> None:
    assert page.count(">cut off<") == 2


def test_pictures_have_names_and_no_clashing_ids(page: str) -> None:
    assert len(titles(page)) == 13
    assert len(set(titles(page))) == 13
    assert all(titles(page))
    assert all(picture.get("role") == "img" for picture in pictures(page))
    ids = [picture_ids(picture) for picture in pictures(page)]
    assert all(not a & b for a, b in combinations(ids, 2))


def picture_ids(picture: ElementTree.Element) -> set[str]:
    return {element.get("id", "") for element in picture.iter()} - {""}


def test_a_picture_has_as_many_points_as_there_are_metrics(metrics: Metrics) -> None:
    reward, kl, *_ = plots.CURVES["objective/scores"]
    rollouts = sum("objective/kl" in row for row in metrics["ppo"])
    for spec in (reward, kl):
        assert longest_path(plots.curve(spec, metrics["ppo"]) or "") == rollouts == 32
    loss, _ = plots.CURVES["margin"]
    svg = plots.curve(loss, metrics["reward"]) or ""
    assert longest_path(svg) == len(metrics["reward"])
    assert len(re.findall(r"<use [^>]*currentColor", svg)) >= 3, "held-out points"


def test_points_on_a_straight_line_are_all_kept() -> None:
    rows = [{"step": step, "loss": 3.0 - step} for step in range(200)]
    assert longest_path(plots.curve(plots.CURVES["loss"][0], rows) or "") == 200


def test_a_single_point_is_visible() -> None:
    spec = plots.CURVES["loss"][0]
    alone = plots.curve(spec, [{"step": 1, "loss": 2.0}]) or ""
    assert alone.count("<use") > (plots.curve(spec, [{"step": 1, "loss": 2.0}] * 2) or "").count(
        "<use"
    )


def test_a_policy_has_one_look_everywhere(summary: Summary, page: str) -> None:
    styles = plots.policy_styles(summary)
    assert len(set(styles.values())) == len(styles)
    for label, stage in [("ppo", "ppo"), ("dpo", "dpo"), ("sft", "sft")]:
        colour = styles[label].colour
        assert f'style="color: {colour}"' in page
        own = [svg for svg in re.findall(r"<svg.*?</svg>", page, re.S) if f">{stage}: " in svg]
        assert own
        assert all(f"stroke: {colour}" in svg for svg in own)
        others = {style.colour for style in styles.values()} - {colour}
        assert not any(other in svg for svg in own for other in others)


def test_the_colours_are_readable_on_white_and_on_dark() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in plots.PALETTE:
        assert 1.05 / (luminance(colour) + 0.05) >= 3
        assert (luminance(colour) + 0.05) / (luminance("#16171a") + 0.05) >= 3


def test_without_gold_the_proxy_is_drawn_and_named(summary: Summary) -> None:
    for policy in summary.policies:
        policy.gold = policy.gold_gain = None
    page = report.render(summary, {})
    assert Page(page).headings == [s for s in SECTIONS if "while" not in s]
    assert "proxy reward against KL" in titles(page)
    assert "Gain in gold" not in page


def test_without_ppo_its_section_is_gone(summary: Summary, metrics: Metrics) -> None:
    summary.policies = [p for p in summary.policies if p.stage != "ppo"]
    summary.stages = [s for s in summary.stages if s.name != "ppo"]
    del summary.first_step["ppo"]
    page = report.render(summary, metrics)
    assert Page(page).headings == [s for s in SECTIONS if not s.startswith("PPO")]
    assert "val/ratio" not in page


def test_the_least_there_can_be(tmp_path: Path) -> None:
    bare = Summary(name="x", seed=0, created="", machine={}, versions={}, precision="float32")
    (tmp_path / "summary.json").write_text(bare.model_dump_json(), encoding="utf-8")
    page = report.write_report(tmp_path).read_text(encoding="utf-8")
    assert Page(page).headings == ["Run it again"]
    assert pictures(page) == []


def test_distances_alone_draw_no_scatter(summary: Summary) -> None:
    for policy in summary.policies:
        policy.kl = policy.kl_bound = None
    assert plots.reward_kl(summary) is None


def test_labels_are_never_mathematics_or_left_out(summary: Summary) -> None:
    summary.policies[2].label = "_$x^2$ 中 " + "long " * 30
    summary.policies[3].label = "$"
    for svg in (plots.reward_kl(summary), plots.gains(summary)):
        assert "_$x^2$ 中 long long long…" in (svg or "")
        assert ">$<" in (svg or "")


def test_every_metric_with_a_known_start_is_explained() -> None:
    plain = [name for name in objectives.names() if name != "mixture"]  # it repeats its parts'
    declared = {m for name in plain for m in objectives.find(name)().step_zero}
    declared |= {m for name in credit.names() for m in credit.find(name)().step_zero}
    assert declared == set(report.WHY)


def test_a_broken_first_step_is_called_one(summary: Summary, page: str) -> None:
    assert "does not hold" not in page
    summary.first_step["ppo"]["val/ratio"] = 1.0000001
    cells = [cell.strip() for cell in Page(report.render(summary, {})).cells]
    at = cells.index("val/ratio")
    assert cells[at + 1 : at + 4] == ["1", "1.0000001", "✗ does not hold"]


@pytest.mark.parametrize("content", [None, "{", '{"name": 1}', b"\xff"])
def test_no_summary_is_an_error_with_a_remedy(tmp_path: Path, content: str | bytes | None) -> None:
    if content is not None:
        raw = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "summary.json").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"summary\.json") as caught:
        report.write_report(tmp_path)
    assert caught.value.remedy


def test_importing_is_light() -> None:
    heavy = "{'torch', 'matplotlib', 'jinja2', 'numpy'}"
    code = f"import sys, truing.evaluation.report; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def parts(model: BaseModel) -> Iterator[BaseModel]:
    """A model and every model in it."""
    yield model
    for _, value in model:
        members = value.values() if isinstance(value, dict) else value
        for member in members if isinstance(value, (list, dict)) else [value]:
            if isinstance(member, BaseModel):
                yield from parts(member)


def changed(value: Any) -> Any:
    """Another value of the same kind, far enough to show in the digits of a table."""
    match value:
        case str():
            return value + "~"
        case int() | float():
            return value * 2 + 2**30
        case BaseModel():
            return value.model_copy(update={name: changed(inner) for name, inner in value})
        case list():
            return value[:-1]
        case dict():
            return dict(list(value.items())[:-1])
    return value


FIELDS = [
    (name, field)
    for name, part in vars(schema).items()
    if isinstance(part, type) and issubclass(part, schema.Part)
    for field in part.model_fields
]


@pytest.mark.parametrize(("part", "field"), FIELDS)
def test_every_field_is_shown_or_deliberately_not(
    summary: Summary, part: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = DRAWN_ONLY.get((part, field))
    if show is None:
        for picture in ("reward_kl", "gains"):  # slow, and they only repeat the table
            monkeypatch.setattr(plots, picture, lambda _: None)
    before = show(summary) if show else report.render(summary, {})
    owners = [model for model in parts(summary) if type(model).__name__ == part]
    assert owners
    for model in owners:
        setattr(model, field, changed(getattr(model, field)))
    after = show(summary) if show else report.render(summary, {})
    assert (after == before) == ((part, field) in NOT_SHOWN)


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ("pairs", "480 held-out pairs"),
        ("lists", "the pairs of 480 held-out lists"),
        ("steps", "480 held-out steps"),
    ],
)
def test_an_accuracy_says_what_it_is_a_share_of(summary: Summary, unit: str, words: str) -> None:
    (result,) = summary.reward_models = [summary.reward_models[0].model_copy(update={"unit": unit})]
    assert f" of {words} (guessing" in report.render(summary, {})
    (said,) = verdicts([], None, [result])
    assert f"] of {words} as the annotator did" in said
