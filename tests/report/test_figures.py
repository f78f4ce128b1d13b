"""Figures: marks where the numbers are, labels that don't touch, and what hovering says."""

import re

import pytest

from allmrec_jax.report import figures
from allmrec_jax.report.figures import Row, Series


def places(svg: str, pattern: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, svg)]


def test_bars_are_as_long_as_their_values_from_a_common_beginning():
    svg = figures.bars([Row("a", [0.2, 0.1, 0.3]), Row("bb", [0.4, 0.4, 0.5], "ours")], "bars", limit=0.5)
    widths = places(svg, r'width="([\d.]+)" height')
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.11)  # printed to a tenth
    assert "<title>bb: 0.400 (0.400 to 0.500)</title>" in svg
    whiskers = re.findall(r'class="whisker" d="M([\d.]+) [\d.]+L([\d.]+)', svg)
    assert float(whiskers[0][1]) - float(whiskers[0][0]) == pytest.approx(widths[0], abs=0.2)


def test_differences_lie_on_their_side_of_zero():
    svg = figures.differences([Row("up", [0.2, 0.1, 0.3]), Row("down", [-0.2, -0.3, -0.1])], "differences")
    (zero,) = places(svg, r'class="zero" d="M([\d.]+)')
    up, down = places(svg, r'cx="([\d.]+)"')
    assert up - zero == pytest.approx(zero - down, abs=0.11) and up > zero


def test_a_long_curve_is_binned_and_ends_at_its_last_value():
    svg = figures.curve(range(1, 1001), [1000.0 - step for step in range(1, 1001)], "falls", unit="step")
    assert ">2.5</text>" in svg  # 143 bins; the mean of the last six values: 5, 4, 3, 2, 1, 0
    assert svg.count("L") < figures.POINTS + 10


def test_lines_keep_their_names_apart_and_a_logarithmic_axis_its_distances():
    close = [Series(name, [(10, 0.5), (100, 0.5 + shift), (1000, 0.5)], "c1") for name, shift in (("a", 0), ("b", 0.3))]
    svg = figures.lines(close, "lines", x_label="users", log=True, x_ticks={10: "10", 100: "100", 1000: "1,000"})
    names = places(svg, r'class="name c1" x="[\d.]+" y="([\d.]+)"')
    assert abs(names[0] - names[1]) >= 12
    ticks = [
        float(re.search(rf'x="([\d.]+)" y="[\d.]+" text-anchor="middle">{text}<', svg)[1])
        for text in ("10", "100", "1,000")
    ]
    assert ticks[1] - ticks[0] == pytest.approx(ticks[2] - ticks[1], abs=0.11)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0, 0.43, [0, 0.2, 0.4]), (-0.3, 0.3, [-0.2, 0, 0.2]), (0, 0, [0])],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]):
    assert figures._ticks(low, high, 4) == pytest.approx(ticks)


def test_words_in_figures_are_escaped():
    svg = figures.scatter([('<a> & "b"', 1.0, [0.5, 0.4, 0.6], "ours")], '"alt" <b>', x_label="x")
    assert "<a>" not in svg and "<b>" not in svg and 'aria-label="&#34;alt&#34;' in svg


def test_a_cloud_has_a_dot_for_each_point_within_it_in_few_bytes():
    svg = figures.cloud([[(0, 0), (1, 1), (1.1, 0), (0, -9)], [(0.5, 0.5)]], "cloud", ["c1", "c2"], [0, 1, 0, 1])
    assert re.findall(r'class="dots (c\d)" d="(.*?)"', svg) == [("c1", "M8 352h0M352 8h0"), ("c2", "M180 180h0")]
