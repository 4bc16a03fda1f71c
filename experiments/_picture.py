"""Lines and points as a picture for the docs: the same bytes for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from truing.evaluation.plots import HOUSE, INK, MARKERS, PALETTE

GREY = "#7c7c7c"
"""Ink that can be read on white and on black: a picture in a README has no page colour to take."""


@dataclass(frozen=True)
class Line:
    """What is drawn of one run."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    joined: bool = True
    marker: str | None = None
    """None: the next of the house's."""


def drawn(title: str, xlabel: str, ylabel: str, panels: Sequence[Sequence[Line]]) -> str:
    """An SVG with one panel for each list of lines, on common axes."""
    from matplotlib import style
    from matplotlib.figure import Figure

    own = {f"{group}.{key}": v for group, keys in HOUSE.items() for key, v in keys.items()}
    own = {key: GREY if value == INK else value for key, value in own.items()}
    with style.context(["default", own, {"svg.hashsalt": title}]):
        figure = Figure(figsize=(1.2 + 4.2 * len(panels), 3.4), layout="constrained")
        axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for place, lines in zip(axes, panels, strict=True):
            for number, line in enumerate(lines):
                look = {"color": PALETTE[number % len(PALETTE)], "label": line.name}
                look["marker"] = (
                    [*MARKERS][number % len(MARKERS)] if line.marker is None else line.marker
                )
                place.plot(line.x, line.y, linestyle="-" if line.joined else "", **look)
            place.set_xlabel(xlabel)
            place.legend(loc="best")
        axes[0].set_ylabel(ylabel)
        axes[0].set_title(title)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator")))
    return buffer.getvalue()
