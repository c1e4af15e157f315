"""Charts are whole and hold every value, those above the axis, too."""

import re

from support.html_page import Page

from prefixray.reporting.charts.axes import Axis, Groups
from prefixray.reporting.charts.canvas import LETTER, LINE
from prefixray.reporting.charts.plots import Dot, Line, Series, bars, curves, forest, scatter, strips


def test_charts_hold_single_and_equal_values() -> None:
    dot = Dot(1000, 3.0, "tip", "name")
    axis = Axis("x (unit)", log=True)
    drawn = [
        scatter([dot, dot], axis, Axis("y (unit)"), title="t"),
        forest([Dot(0.0, 0, "tip", "name", (0.0, 0.0))], Axis("x (unit)"), title="t", zero="reference"),
        curves([Line([(8, 2.0)], "tip")], Axis("x (unit)"), Axis("y (unit)"), title="t", limits=(2.0, 2.1), rungs=[8]),
        strips([Series("s", [dot])], axis, Axis("y (unit)"), title="t", limits=(3.0, 3.1)),
        strips([Series("s", [Dot(0, 9.0, "tip")])], Groups("x", ["a"]), Axis("y (unit)"), title="t", limits=(1.0, 2.0)),
        bars([("name", 0.0)], Axis("x (share)"), title="t"),
    ]
    for chart in drawn:
        assert Page(chart).wrong == []
        assert "nan" not in chart and "inf" not in chart
    assert 'class="beyond"' in drawn[4], "what lies above the limit has an arrow"


def test_a_line_that_leaves_the_axis_comes_back_in_a_piece_of_its_own() -> None:
    line = Line([(0, 1.0), (1, 9.0), (2, 9.5), (3, 1.0), (4, 1.5)], "tip")
    chart = curves([line], Axis("x (unit)"), Axis("y (unit)"), title="t", limits=(1.0, 2.0), rungs=[])
    pieces = [piece.split() for piece in re.findall(r'<polyline points="([^"]+)"', chart)]
    assert [len(piece) for piece in pieces] == [2, 3]
    assert chart.count('class="beyond"') == 2


def test_arrows_that_lie_on_one_another_are_counted() -> None:
    lines = [Line([(1, height)], "tip", cut=True) for height in (1.5, 7.0, 8.0, 9.0)]
    chart = curves(lines, Axis("x (unit)"), Axis("y (unit)"), title="t", limits=(1.0, 2.0), rungs=[1])
    assert chart.count('class="beyond"') == 3 and 'class="tick">3</text>' in chart


def test_no_name_crosses_the_interval_of_another_point() -> None:
    """Between two tall intervals there is no room for a name: the legend has it."""
    arms = [("prefix", 1000), ("adapter", 1500), ("lora", 2200), ("finetune", 900_000)]
    dots = [Dot(x, 3.0, "tip", name, (1.0, 5.0), kind) for kind, (name, x) in enumerate(arms)]
    chart = scatter(dots, Axis("x (unit)", log=True), Axis("y (unit)"), title="t")
    lines = re.findall(r'class="whisker" x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"', chart)
    texts = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="start">(\w+)<', chart)
    assert len(lines) == 12 and {name for *_, name in texts} == {name for name, _ in arms} and len(texts) == 4
    for left, baseline, name in ((float(x), float(y), name) for x, y, name in texts):
        right, top, bottom = left + len(name) * LETTER, baseline + 4 - LINE, baseline + 4
        for x1, y1, x2, y2 in (map(float, line) for line in lines):
            assert x2 < left or x1 > right or max(y1, y2) < top or min(y1, y2) > bottom, name
    height = float(re.search(r'viewBox="0 0 420 (\d+)"', chart)[1])  # type: ignore[index]
    assert all(float(baseline) < height for _, baseline, _ in texts)
