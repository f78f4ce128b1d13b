"""Figures as inline SVG: a few kilobytes each, real text, coloured by the page's style sheet, in dark mode too.

Every figure is as wide as a phone, so that its letters keep their size there, and says its numbers to those who cannot
see it. Marks are explained on hovering.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

WIDTH = 360
"""Width of every figure, in the units of its letters, which are 11 high."""

LETTER = 5.9
"""Mean width of a letter."""

BOLD = 6.7
"""That of a bold one."""

POINTS = 160
"""More points than these along a curve are averaged in equal bins."""

Tone = Literal["ours", "cf", "other", "c1", "c2", "c3", "c4", "c5", "c6"]
"""A class of colour in the style sheet: A-LLMRec, the CF model inside it, the rest; then series of equal standing."""


@dataclass(frozen=True)
class Row:
    """One row of a figure: a label, ``[value, low, high]``, and a colour."""

    label: str
    interval: Sequence[float]
    tone: Tone = "other"


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        label: stands at the line's end.
        points: ``(x, value)``, or ``(x, value, low, high)`` where there is an interval.
        tone: its colour.
    """

    label: str
    points: Sequence[Sequence[float]]
    tone: Tone = "ours"


def bars(rows: Sequence[Row], alt: str, *, limit: float, chance: float | None = None) -> Markup:
    """Horizontal bars with intervals and printed values, the first row on top.

    Args:
        rows: what to draw.
        alt: what the figure shows, for those who cannot see it.
        limit: end of the axis, the same for figures to be compared.
        chance: where to mark the value of guessing.
    """
    labels, left = _labels([row.label for row in rows])
    x = _scale(0, limit, left, WIDTH - 8)
    top = 6 if chance is None else 16
    height = 20 * len(rows) + 24 + top
    parts = [_grid_x(x, _ticks(0, limit, 4), top, height - 22)]
    for place, (row, label) in enumerate(zip(rows, labels, strict=True)):
        value, low, high = row.interval
        y = top + 20 * place
        wide = max(x(value) - left, 0.5)
        mark = f'<rect class="fill {row.tone}" x="{left}" y="{y + 4}" width="{wide:.1f}" height="12" rx="1.5"/>'
        mark += _line(x(low), y + 10, x(high), y + 10, "whisker")
        parts.append(_told(mark, f"{row.label}: {value:.3f} ({low:.3f} to {high:.3f})"))
        parts.append(_text(min(x(max(high, value)) + 5, WIDTH - 30), y + 14, f"{value:.3f}", "v"))
        parts.append(_text(left - 7, y + 14, label, "label", "end"))
    if chance is not None:
        parts.append(_line(x(chance), top, x(chance), height - 22, "chance"))
        parts.append(_text(x(chance), top - 5, "guessing", "axis", "middle"))
    return _svg(height + 4, parts, alt)


def differences(rows: Sequence[Row], alt: str) -> Markup:
    """Differences with their intervals beside a line at zero, the first row on top."""
    labels, left = _labels([row.label for row in rows], widest=158)
    reach = max(0.01, *(abs(end) for row in rows for end in row.interval)) * 1.1
    x = _scale(-reach, reach, left + 4, WIDTH - 8)
    height, top = 22 * len(rows) + 28, 4
    parts = [_grid_x(x, _ticks(-reach, reach, 4), top, height - 20, signed=True)]
    parts.append(_line(x(0), top, x(0), height - 20, "zero"))
    for place, (row, label) in enumerate(zip(rows, labels, strict=True)):
        value, low, high = row.interval
        y = top + 22 * place + 11
        mark = _line(x(low), y, x(high), y, f"stroke thick {row.tone}")
        mark += f'<circle class="fill {row.tone}" cx="{x(value):.1f}" cy="{y}" r="4.2"/>'
        parts.append(_told(mark, f"{row.label}: {value:+.3f} ({low:+.3f} to {high:+.3f})"))
        parts.append(_text(left - 7, y + 4, label, "label", "end"))
    return _svg(height, parts, alt)


def curve(steps: Sequence[float], values: Sequence[float], alt: str, *, unit: str, tone: Tone = "ours") -> Markup:
    """A value over training steps; more than :data:`POINTS` points are averaged in equal bins.

    Args:
        steps: step of each value, rising.
        values: the logged values.
        alt: what the figure shows.
        unit: what a step is (``step``, ``epoch``), for the axis.
        tone: its colour.
    """
    size = max(1, -(-len(values) // POINTS))
    cuts = [slice(start, start + size) for start in range(0, len(values), size)]
    points = [(sum(steps[cut]) / len(steps[cut]), sum(values[cut]) / len(values[cut])) for cut in cuts]
    last = f"{points[-1][1]:.3g}"
    return lines([Series(last, points, tone)], alt, x_label=unit, height=150)


def lines(
    series: Sequence[Series],
    alt: str,
    *,
    x_label: str,
    log: bool = False,
    x_ticks: Mapping[float, str] | None = None,
    from_zero: bool = False,
    height: int = 220,
) -> Markup:
    """Lines with their names at their ends; intervals as thin verticals, a little apart where lines meet.

    Args:
        series: what to draw.
        alt: what the figure shows.
        x_label: what the horizontal axis is.
        log: whether that axis is logarithmic.
        x_ticks: its marks, by place; chosen by default.
        from_zero: whether the vertical axis begins at 0.
        height: of the figure.
    """
    place = (lambda x: math.log(x)) if log else (lambda x: x)
    every = [point for each in series for point in each.points]
    ends = [value for point in every for value in point[1:]]
    low, high = (0.0 if from_zero else min(ends)), max(ends)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = (low if from_zero else low - margin), high + margin
    y_ticks = _ticks(low, high, 4)
    left = 10 + LETTER * max(len(_number(tick, y_ticks)) for tick in y_ticks)
    right = WIDTH - 8 - BOLD * max(min(len(each.label), 20) for each in series)
    top, bottom = 8, height - 34
    begin, end = min(place(point[0]) for point in every), max(place(point[0]) for point in every)
    x_of, y = _scale(begin, end, left + 6, right - 4), _scale(low, high, bottom, top)
    marks = x_ticks or {tick: f"{tick:,.0f}" for tick in _ticks(begin, end, 5, whole=True)}
    parts = [_line(left, y(tick), right, y(tick), "grid") for tick in y_ticks]
    parts += [_text(left - 5, y(tick) + 4, _number(tick, y_ticks), "axis", "end") for tick in y_ticks]
    parts += [_text(x_of(place(tick)), bottom + 15, text, "axis", "middle") for tick, text in marks.items()]
    parts.append(_text((left + right) / 2, height - 4, x_label, "axis", "middle"))
    for number, each in enumerate(series):
        shift = 3.2 * (number - (len(series) - 1) / 2) if any(len(point) > 2 for point in each.points) else 0.0
        spots = [(x_of(place(point[0])) + shift, y(point[1])) for point in each.points]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in spots)
        drawn = f'<path class="stroke {each.tone}" d="{path}"/>'
        for (a, b), point in zip(spots, each.points, strict=True):
            if len(point) > 2:
                drawn += _line(a, y(point[2]), a, y(point[3]), f"stroke thin {each.tone}")
            if len(spots) <= 30:
                told = f"{each.label}, {x_label} {point[0]:g}: {point[1]:.3f}"
                told += f" ({point[2]:.3f} to {point[3]:.3f})" if len(point) > 2 else ""
                drawn += _told(f'<circle class="fill {each.tone}" cx="{a:.1f}" cy="{b:.1f}" r="2.6"/>', told)
        parts.append(f"<g>{drawn}</g>")
    heights = _apart([y(each.points[-1][1]) for each in series], 12, top, bottom)
    for each, at in zip(series, heights, strict=True):
        parts.append(_text(right + 4, at + 4, each.label[:20], f"name {each.tone}"))
    return _svg(height, parts, alt)


def scatter(rows: Sequence[tuple[str, float, Sequence[float], str]], alt: str, *, x_label: str) -> Markup:
    """Named points with vertical intervals.

    Args:
        rows: name, place on the horizontal axis, ``[value, low, high]`` and tone of each.
        alt: what the figure shows.
        x_label: what the horizontal axis is; it begins at 0.
    """
    high = max(interval[2] for _, _, interval, _ in rows) * 1.08
    reach = max(x for _, x, _, _ in rows) * 1.05 or 1.0
    height, left, top, bottom = 240, 34, 8, 206
    x, y = _scale(0, reach, left, WIDTH - 10), _scale(0, high, bottom, top)
    y_ticks, x_ticks = _ticks(0, high, 4), _ticks(0, reach, 5)
    parts = [_line(left, y(tick), WIDTH - 10, y(tick), "grid") for tick in y_ticks]
    parts += [_text(left - 5, y(tick) + 4, _number(tick, y_ticks), "axis", "end") for tick in y_ticks]
    parts += [_text(x(tick), bottom + 15, _number(tick, x_ticks), "axis", "middle") for tick in x_ticks]
    parts.append(_text((left + WIDTH) / 2, height - 3, x_label, "axis", "middle"))
    heights = _apart([y(interval[0]) for _, _, interval, _ in rows], 13, top + 6, bottom - 4)
    for (name, place, interval, tone), at in zip(rows, heights, strict=True):
        mark = _line(x(place), y(interval[1]), x(place), y(interval[2]), f"stroke thin {tone}")
        mark += f'<circle class="fill {tone}" cx="{x(place):.1f}" cy="{y(interval[0]):.1f}" r="4.5"/>'
        parts.append(_told(mark, f"{name}: {place:.3g}, {interval[0]:.3f} ({interval[1]:.3f} to {interval[2]:.3f})"))
        before = x(place) + 9 + BOLD * len(name) > WIDTH
        parts.append(
            _text(x(place) + (-9 if before else 9), at + 4, name, f"name {tone}", "end" if before else "start")
        )
    return _svg(height, parts, alt)


def cloud(
    groups: Sequence[Sequence[tuple[float, float]]], alt: str, tones: Sequence[str], box: Sequence[float]
) -> Markup:
    """Points in a square, one colour for each group.

    Args:
        groups: points of each group.
        alt: what the figure shows.
        tones: of the groups.
        box: ``low x, high x, low y, high y`` of what is shown; points beyond are left out.
    """
    x, y = _scale(box[0], box[1], 8, WIDTH - 8), _scale(box[2], box[3], WIDTH - 8, 8)
    parts = []
    for points, tone in zip(groups, tones, strict=True):
        inside = [(a, b) for a, b in points if box[0] <= a <= box[1] and box[2] <= b <= box[3]]
        dots = "".join(f"M{x(a):.0f} {y(b):.0f}h0" for a, b in inside)  # no length, round ends: a dot in ten bytes
        parts.append(f'<path class="dots {tone}" d="{dots}"/>')
    return _svg(WIDTH, parts, alt)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``."""
    raw = (high - low) / count or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    step = max(1.0, round(step)) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(tick: float, ticks: Sequence[float], signed: bool = False) -> str:
    """A tick with as many decimals as its axis needs."""
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=abs(tick) or 1.0)
    decimals = next((n for n in range(7) if abs(step * 10**n - round(step * 10**n)) < 1e-6), 6)
    text = f"{tick:+,.{decimals}f}" if signed and round(tick, decimals) else f"{tick or 0.0:,.{decimals}f}"
    return text.replace("-", "−")


def _grid_x(
    x: Callable[[float], float], ticks: Sequence[float], top: float, bottom: float, signed: bool = False
) -> str:
    drawn = "".join(_line(x(tick), top, x(tick), bottom, "grid") for tick in ticks)
    return drawn + "".join(
        _text(x(tick), bottom + 14, _number(tick, ticks, signed), "axis", "middle") for tick in ticks
    )


def _labels(labels: Sequence[str], widest: float = 150) -> tuple[list[str], float]:
    """Labels cut to what fits, and where the drawing beside them begins."""
    most = int(widest / LETTER)
    cut = [label if len(label) <= most else label[: most - 1] + "…" for label in labels]
    return cut, round(10 + LETTER * max(map(len, cut)))


def _apart(places: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """Heights as near to ``places`` as they can be, ``gap`` apart."""
    order = sorted(range(len(places)), key=lambda number: places[number])
    found = list(places)
    for before, number in zip([None, *order], order, strict=False):
        found[number] = max(found[number], top if before is None else found[before] + gap)
    beyond = bottom
    for number in reversed(order):
        found[number] = min(found[number], beyond)
        beyond = found[number] - gap
    return found


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    anchored = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{anchored}>{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<path class="{kind}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>'


def _told(mark: str, words: str) -> str:
    """A mark that says what it is on hovering."""
    return f"<g><title>{escape(words)}</title>{mark}</g>"


def _svg(height: float, parts: Sequence[str], alt: str) -> Markup:
    head = f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(alt)}">'
    return Markup(head + "".join(parts) + "</svg>")
