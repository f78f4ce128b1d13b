"""Figures as inline SVG: drawn by matplotlib, coloured by the page's CSS variables, in dark mode too."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 3.7
"""Width of every figure in inches. Narrow on purpose: panels sit side by side on a desk and fill a phone."""

_COLOURS = {
    "#010101": "--ink",
    "#020202": "--soft",
    "#030303": "--line",
    "#040404": "--ours",
    "#050505": "--cf",
    "#060606": "--other",
}
"""Colours that matplotlib is given, and the CSS variable that takes the place of each."""
_INK, _SOFT, _LINE, _OURS, _CF, _OTHER = _COLOURS
_TONES = {"ours": _OURS, "cf": _CF, "other": _OTHER}


@dataclass(frozen=True)
class Row:
    """One row of a figure: a label, ``[value, low, high]``, and a tone (``ours``, ``cf`` or ``other``)."""

    label: str
    interval: Sequence[float]
    tone: str = "other"


def bars(rows: Sequence[Row], alt: str, *, limit: float, chance: float | None = None) -> Markup:
    """Horizontal bars with intervals and printed values, the first row on top.

    Args:
        rows: what to draw.
        alt: what the figure shows, for those who cannot see it.
        limit: end of the axis, the same for figures to be compared.
        chance: where to mark the value of guessing.
    """
    figure, axes = _panel(len(rows))
    for place, row in enumerate(rows):
        value, low, high = row.interval
        axes.barh(place, value, height=0.62, color=_TONES[row.tone], alpha=0.85)
        axes.plot([low, high], [place, place], color=_INK, linewidth=1.2, solid_capstyle="butt")
        axes.text(max(high, value) + 0.015 * limit, place, f"{value:.3f}", va="center", fontsize=8, color=_INK)
    if chance is not None:
        axes.axvline(chance, color=_SOFT, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.text(chance, -0.72, "guessing", fontsize=7, color=_SOFT, ha="left", va="bottom")
    axes.set_xlim(0, limit)
    return _rows_svg(figure, axes, [row.label for row in rows], alt)


def differences(rows: Sequence[Row], alt: str) -> Markup:
    """Differences with their intervals beside a line at zero, the first row on top; labels of two lines."""
    figure, axes = _panel(len(rows), height=0.36)
    for place, row in enumerate(rows):
        value, low, high = row.interval
        colour = _TONES[row.tone]
        axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([value], [place], color=colour, marker="o", markersize=5)
    axes.axvline(0, color=_INK, linewidth=0.9)
    reach = max(0.01, *(abs(end) for row in rows for end in row.interval)) * 1.12
    axes.set_xlim(-reach, reach)
    return _rows_svg(figure, axes, [row.label for row in rows], alt)


def curve(steps: Sequence[float], values: Sequence[float], alt: str, *, unit: str, tone: str = "ours") -> Markup:
    """A value over training steps; more than 200 points are averaged in equal bins.

    Args:
        steps: step of each value, rising.
        values: the logged values.
        alt: what the figure shows.
        unit: what a step is (``step``, ``epoch``), for the axis.
        tone: ``ours``, ``cf`` or ``other``.
    """
    figure, axes = _figure(1.9)
    size = max(1, -(-len(values) // 200))
    bins = [slice(start, start + size) for start in range(0, len(values), size)]
    x = [sum(steps[cut]) / len(steps[cut]) for cut in bins]
    y = [sum(values[cut]) / len(values[cut]) for cut in bins]
    axes.plot(x, y, color=_TONES[tone], linewidth=1.6, marker="o" if len(x) < 30 else "", markersize=2.5)
    end = (x[-1], y[-1])
    axes.annotate(f"{y[-1]:.3g}", end, (4, 0), textcoords="offset points", va="center", fontsize=8, color=_INK)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel(unit, fontsize=8, color=_SOFT)
    axes.margins(x=0.09)
    axes.grid(axis="y", color=_LINE, linewidth=0.6)
    return _svg(figure, alt)


def _figure(height: float) -> "tuple[Figure, Axes]":
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 8, "axes.edgecolor": _LINE}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_SOFT, labelsize=8, length=0)
    axes.set_facecolor("none")
    return figure, axes


def _panel(rows: int, height: float = 0.27) -> "tuple[Figure, Axes]":
    figure, axes = _figure(0.45 + height * rows)
    axes.set_ylim(rows - 0.45, -0.75)
    axes.grid(axis="x", color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _rows_svg(figure: "Figure", axes: "Axes", labels: list[str], alt: str) -> Markup:
    axes.set_yticks(range(len(labels)), labels, color=_INK)
    axes.spines["left"].set_visible(False)
    return _svg(figure, alt)


def _svg(figure: "Figure", alt: str) -> Markup:
    """The figure as an ``<svg>`` element: real text, no fixed size, ids that don't collide within a page."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": alt}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None})
    svg = out.getvalue()[out.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    head = f'<svg {box[0]} role="img" aria-label="{escape(alt)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1))
