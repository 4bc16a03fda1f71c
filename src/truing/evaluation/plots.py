"""Pictures of a run as inline SVG: the same bytes for the same numbers. No torch.

Ink is `currentColor`, so a picture takes the colour of the page it stands in, light or dark.
The policies' colours have a contrast of at least 3 to white and to near-black, stay apart for
colour-blind readers, and every policy has its own marker as well.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from math import log
from typing import Any, NamedTuple

from truing.evaluation.summary import Interval, PolicyResult, Summary

PALETTE = ("#2380c2", "#d55e00", "#009e73", "#b8608f", "#a97b00", "#7a6fd0", "#808080")
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}  # -> as a character
INK = "#010203"  # drawn in this colour, then replaced by currentColor
SMOOTH_FROM = 60  # curves with more points than this also get a running mean

# matplotlib's parameters, by group.
HOUSE: Mapping[str, Mapping[str, Any]] = {
    "text": {"color": INK, "parse_math": False},  # a label is a label, whatever it contains
    "font": {"family": "DejaVu Sans", "size": 9},  # comes with matplotlib: same metrics everywhere
    "axes": {"edgecolor": INK, "labelcolor": INK, "linewidth": 0.7, "grid": True}
    | {"titlelocation": "left", "titlesize": 10, "titleweight": "bold", "titlepad": 10},
    "axes.spines": {"top": False, "right": False},
    "grid": {"color": INK, "alpha": 0.12, "linewidth": 0.7},
    "xtick": {"color": INK, "major.size": 0},
    "ytick": {"color": INK, "major.size": 0},
    "legend": {"frameon": False, "fontsize": 8.5},
    "lines": {"linewidth": 1.6, "markersize": 5},
    "svg": {"fonttype": "none"},
    "savefig": {"transparent": True},
}

Metrics = Sequence[Mapping[str, float]]
"""The lines of metrics.jsonl."""


class Style(NamedTuple):
    """How a policy looks, in every picture and table."""

    colour: str
    marker: str
    glyph: str


def policy_styles(summary: Summary) -> dict[str, Style]:
    """Label -> its colour and marker, in the order of the table."""
    looks = zip(cycle(PALETTE), cycle(MARKERS.items()), strict=False)
    return {
        policy.label: Style(colour, *shape)
        for policy, (colour, shape) in zip(summary.policies, looks, strict=False)
    }


@dataclass(frozen=True)
class Curve:
    """One picture of training: which metrics over the steps."""

    title: str
    unit: str
    metrics: Mapping[str, str]
    """Metric -> what the line is called. `eval/<metric>` is drawn beside it where there is one."""
    guides: Mapping[str, float] = field(default_factory=dict)
    """Levels worth knowing: what they are -> where."""


CHANCE = {"guessing": 0.5}
UNDECIDED = {"undecided: ln 2": log(2)}
SIDES = {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}

CURVES: Mapping[str, tuple[Curve, ...]] = {
    "objective/scores": (
        Curve("Reward of the completions", "reward (not scaled)", {"objective/scores": ""}),
        Curve("Distance from the reference", "KL (nats/completion)", {"objective/kl": ""}),
        Curve("Randomness of the policy", "entropy (nats/token)", {"policy/entropy_avg": ""}),
        Curve("Length of the completions", "length (tokens)", {"completions/mean_length": ""}),
    ),
    "rewards/margins": (
        Curve("Margin, chosen over rejected", "margin (β × nats)", {"rewards/margins": ""}),
        Curve("Pairs in the right order", "accuracy (share)", {"rewards/accuracies": ""}, CHANCE),
        Curve("Implicit reward of each side", "reward (β × nats)", SIDES),
        Curve("Loss", "loss (nats/pair)", {"loss": ""}, UNDECIDED),
    ),
    "margin": (
        Curve("Loss of the reward model", "loss (nats/pair)", {"loss": ""}, UNDECIDED),
        Curve("Pairs in the annotator's order", "accuracy (share)", {"accuracy": ""}, CHANCE),
    ),
    "loss": (Curve("Loss", "loss (nats)", {"loss": ""}),),
}
"""The metric by which a family of objectives is known -> its pictures. The first match counts."""


def family(rows: Metrics) -> str | None:
    """The key of CURVES that these metrics belong to; None if there is nothing to draw."""
    names = {name for row in rows for name in row}
    return next((key for key in CURVES if key in names), None)


def curve(
    spec: Curve,
    rows: Metrics,
    *,
    stage: str = "",
    colour: str = INK,
    guides: Mapping[str, float] | None = None,
) -> str | None:
    """Metrics over the steps; None where none of them was written."""
    names = [*spec.metrics, *(f"eval/{name}" for name in spec.metrics)]
    points = {n: [(r["step"], r[n]) for r in rows if r.get(n) is not None] for n in names}
    lines = {name: found for name, found in points.items() if found}
    if not lines:
        return None
    most = max(map(len, lines.values()))
    window = most // 20 if most > SMOOTH_FROM else 1
    smoothed = f"; bold: mean of {window} points" if window > 1 else ""

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for name in lines:
            look: dict[str, Any] = {"color": colour, "label": _line_label(spec, name, lines)}
            if name.removeprefix("eval/") != next(iter(spec.metrics)):
                look["linestyle"] = "--"
            if name.startswith("eval/"):
                look |= {"marker": "o", "markerfacecolor": "none", "linewidth": 1}
            _line(axes, lines[name], window, look)
        _guides(axes, {**spec.guides, **(guides or {})})
        axes.set(title=spec.title, ylabel=spec.unit)
        axes.set_xlabel("step (optimizer updates)" + smoothed)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(lines) > 1:
            figure.legend(loc="outside lower center", ncols=4)

    return _svg(f"{stage}: {spec.title}", paint, (5.2, 3.0), thin=most > 1000)


def reward_kl(summary: Summary) -> str | None:
    """Reward against distance from the reference; None without rewards or without distances.

    The reward is the gold one, or the proxy where there is no gold. Best-of-N stands at its bound,
    hollow, with an arrow: its KL is somewhere to the left.
    """
    name = "gold" if any(p.gold for p in summary.policies) else "proxy"
    points = [(p, getattr(p, name), _distance(p, summary)) for p in summary.policies]
    placed: list[tuple[Any, ...]] = [point for point in points if all(point)]
    if not any(distance.high > 0 for _, _, distance in placed):
        return None
    styles = policy_styles(summary)
    reference = _short(summary.reference or "the reference")

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        handles = [_place(axes, styles[p.label], y, x, _bounded(p)) for p, y, x in placed]
        axes.set(
            title=f"{name.capitalize()} reward against distance from {reference}",
            xlabel=f"KL from {reference} (nats per completion)",
            ylabel=f"{name} reward ({_SCALE[name]})",
        )
        legend = figure.legend(handles, [""] * len(handles), loc="outside lower center", ncols=3)
        for text, (policy, _, _) in zip(legend.get_texts(), placed, strict=True):
            # Set afterwards: legend() drops labels that begin with an underscore.
            text.set_text(_short(policy.label) + (" (bound: at most)" if _bounded(policy) else ""))

    return _svg(f"{name} reward against KL", paint, (6.4, 4.0))


def gains(summary: Summary) -> str | None:
    """What each policy gained over the reference, gold and proxy side by side; None without."""
    others = [p for p in summary.policies if p.label != summary.reference]
    kinds = [k for k in ("gold", "proxy") if any(getattr(p, f"{k}_gain") for p in others)]
    if not kinds:
        return None
    styles = policy_styles(summary)

    def paint(figure: Any) -> None:
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            for row, policy in enumerate(others):
                gain = getattr(policy, f"{kind}_gain")
                if gain is not None:
                    look = styles[policy.label]
                    axes.barh(row, gain.mean, height=0.5, color=look.colour, alpha=0.28)
                    _mark(axes, gain.mean, row, look, xerr=_arms(gain))
            axes.axvline(0, color=INK, linewidth=1)
            axes.set(title=f"Gain in {kind} reward", xlabel=_SCALE[kind])
            axes.set_yticks(range(len(others)), [_short(p.label) for p in others])
            axes.grid(axis="y", visible=False)
        figure.get_layout_engine().set(wspace=0.08)
        axes.set_ylim(len(others) - 0.4, -0.6)

    return _svg("gain over the reference", paint, (7.2, 1.3 + 0.42 * len(others)))


def best_of_n(
    points: Sequence[Mapping[str, Any]], stage: str = "", over: str = "", colour: str = INK
) -> str:
    """Reward of the best of n against its distance, for every n of one pool; gold beside proxy.

    A point stands at the KL that the pool's ties tell; the faint line ends at the bound.
    """
    kinds = [kind for kind in ("gold", "proxy") if points[0][kind] is not None]
    near = [point["kl_estimate"]["mean"] for point in points]
    far = [max(0.0, point["kl_bound"] - x) for point, x in zip(points, near, strict=True)]
    named = {1 << i for i in range(20)} | {points[-1]["n"]}

    def paint(figure: Any) -> None:
        panels = figure.subplots(1, len(kinds), squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            found = [Interval.model_validate(point[kind]) for point in points]
            means = [value.mean for value in found]
            whiskers = {"xerr": [[0.0] * len(far), far], "linestyle": "none", "alpha": 0.35}
            axes.errorbar(near, means, color=INK, elinewidth=0.8, **whiskers)
            low, high = [value.low for value in found], [value.high for value in found]
            axes.fill_between(near, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(near, means, color=colour, marker="o", markersize=3)
            for point, x, y in zip(points, near, means, strict=True):
                if point["n"] in named:
                    place = {"textcoords": "offset points", "fontsize": 7.5}
                    axes.annotate(str(point["n"]), (x, y), (2, -10), **place)
            axes.set(title=f"{kind.capitalize()} reward of the best of n", xlabel="KL (nats)")
            axes.set_ylabel(_SCALE[kind])
        if over:
            panels[0].annotate(over, (0, -0.28), xycoords="axes fraction", fontsize=7.5)

    return _svg(f"{stage}: the best of n", paint, (3.6 * len(kinds) + 1, 3.0))


_SCALE = {"gold": "annotator's units", "proxy": "units of the trained reward"}


def _distance(policy: PolicyResult, summary: Summary) -> Interval | None:
    """Where a policy stands on the KL axis."""
    if policy.label == summary.reference:
        return Interval(mean=0, low=0, high=0, n=0)
    if policy.kl is None and policy.kl_bound is not None:
        return Interval(mean=policy.kl_bound, low=0, high=policy.kl_bound, n=0)
    return policy.kl


def _bounded(policy: PolicyResult) -> bool:
    """Only an upper bound of its KL is known."""
    return policy.kl is None and policy.kl_bound is not None


def _place(axes: Any, style: Style, y: Interval, x: Interval, bound: bool) -> Any:
    """One policy in the scatter; returns its handle for the legend."""
    if bound:
        arrow = {"arrowstyle": "<-", "color": style.colour, "shrinkA": 0, "shrinkB": 4}
        axes.annotate("", (x.mean, y.mean), (-26, 0), textcoords="offset points", arrowprops=arrow)
    look = {"markersize": 7, "markerfacecolor": "none" if bound else style.colour}
    whiskers = {"xerr": None if bound else _arms(x), "yerr": _arms(y)}
    return _mark(axes, x.mean, y.mean, style, **whiskers, **look)


def _mark(axes: Any, x: float, y: float, style: Style, **look: Any) -> Any:
    """A policy's mark with its whiskers; returns the mark alone."""
    return axes.errorbar(x, y, color=style.colour, fmt=style.marker, elinewidth=1.4, **look)[0]


def _arms(value: Interval) -> list[list[float]]:
    """The interval as matplotlib wants it: how far below and above the mean, never negative."""
    return [[max(0.0, value.mean - value.low)], [max(0.0, value.high - value.mean)]]


def _line_label(spec: Curve, name: str, drawn: Collection[str]) -> str:
    """What the legend calls a line; the split is named only where both are drawn."""
    words = [spec.metrics[name.removeprefix("eval/")]]
    if any(other.startswith("eval/") for other in drawn):
        words.append("held-out" if name.startswith("eval/") else "training")
    return ", ".join(filter(None, words))


def _line(axes: Any, points: list[tuple[float, float]], window: int, look: dict[str, Any]) -> None:
    """One metric: every point; where there are many, faint and under their running mean."""
    steps, values = zip(*points, strict=True)
    if window == 1 or len(points) <= SMOOTH_FROM:
        axes.plot(steps, values, **{"marker": "o" if len(points) == 1 else None, **look})
        return
    runs = [values[max(0, end - window) : end] for end in range(1, len(values) + 1)]
    axes.plot(steps, values, **{**look, "linewidth": 0.8, "alpha": 0.35, "label": None})
    axes.plot(steps, [sum(run) / len(run) for run in runs], **look)


def _guides(axes: Any, levels: Mapping[str, float]) -> None:
    """Thin horizontal lines, each with its name at the right end."""
    place = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "ha": "right"}
    for name, level in levels.items():
        axes.axhline(level, color=INK, linewidth=0.8, linestyle=":")
        axes.annotate(name, (1, level), (-2, 2), fontsize=7.5, **place)


def _short(label: str) -> str:
    """A label that leaves room for the picture."""
    flat = " ".join(label.split())
    return flat if len(flat) <= 24 else flat[:23] + "…"


def _svg(
    title: str, paint: Callable[[Any], None], size: tuple[float, float], thin: bool = False
) -> str:
    """Draw with the house style, whatever the user's matplotlibrc says."""
    from matplotlib import style
    from matplotlib.figure import Figure

    own = {f"{group}.{key}": v for group, keys in HOUSE.items() for key, v in keys.items()}
    own |= {"svg.hashsalt": title, "path.simplify": thin}
    none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    buffer = io.StringIO()
    with style.context(["default", own]), warnings.catch_warnings():
        # The browser has the glyph that DejaVu lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        figure.savefig(buffer, format="svg", metadata=none)
    return _inline(buffer.getvalue(), title)


def _inline(svg: str, title: str) -> str:
    """matplotlib's file as a part of a page: scales with it, is read aloud, clashes with none."""
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    head, rest = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    rest = f' role="img">\n <title>{html.escape(title)}</title>' + rest
    return (head + rest).replace(INK, "currentColor")
