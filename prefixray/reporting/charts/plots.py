"""One function per chart of a report; each returns the chart as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from prefixray.reporting.charts.axes import Axis, Groups, Scale, draw_frame, draw_x_axis, fit_scale, fit_values
from prefixray.reporting.charts.canvas import (
    BOTTOM,
    LETTER,
    LINE,
    NUM_KINDS,
    RIGHT,
    TOP,
    WIDTH,
    Box,
    Canvas,
    arrow,
    boxes_beside,
    curve_mark,
    legend_rows,
    mark,
    path,
    place_name,
)

_SCATTER_HEIGHT = 290.0  # of a chart of named points, without a legend
_STRIPS_HEIGHT = 262.0  # of a chart of a searched value, without its legend


@dataclass(frozen=True)
class Dot:
    """A measured value, with its interval and its name where it has them."""

    x: float
    y: float
    tip: str
    name: str = ""
    interval: tuple[float, float] | None = None
    kind: int = 0


@dataclass(frozen=True)
class Line:
    """One trial's curve."""

    points: Sequence[tuple[float, float]]
    tip: str
    cut: bool = False  # whether the trial was stopped at its last point
    strong: bool = False


@dataclass(frozen=True)
class Series:
    """Points that belong together."""

    name: str
    points: Sequence[Dot]
    kind: int = 0
    filled: bool = True
    joined: bool = True  # of `trends`: whether a line joins them

    @property
    def style(self) -> str:
        """The page's classes for its colour and its filling."""
        return f"k{self.kind % NUM_KINDS} {'filled' if self.filled else 'hollow'}"


def scatter(dots: Sequence[Dot], x_axis: Axis, y_axis: Axis, *, title: str) -> str:
    """Named points with their intervals as whiskers; a name that finds no room beside its point stands in a legend."""
    bottom = _SCATTER_HEIGHT - BOTTOM
    ends = [end for dot in dots for end in (dot.y, *(dot.interval or ()))]
    y = fit_scale(y_axis, ends, bottom, TOP)
    x = fit_scale(x_axis, [dot.x for dot in dots], y.text_width(), WIDTH - RIGHT, pad=0.16)
    taken = [_interval_box(dot, x(dot.x), y, 7) for dot in dots]
    boxes = []
    for dot in dots:
        beside = place_name(dot.name, x(dot.x), y(dot.y), taken, within=(y.text_width(), TOP, WIDTH, bottom))
        boxes.append(beside)
        if beside is not None:
            taken.append(beside)
    unplaced = [Series(dot.name, [dot], dot.kind) for dot, box in zip(dots, boxes, strict=True) if not box]
    legend = legend_rows(unplaced, _legend_width)
    canvas = Canvas(_SCATTER_HEIGHT + (8 + LINE * len(legend) if legend else 0))
    draw_frame(canvas, x, y, bottom=bottom)
    for dot, box in zip(dots, boxes, strict=True):
        canvas.add(f'<g class="k{dot.kind % NUM_KINDS}"><title>{escape(dot.tip)}</title>')
        if dot.interval is not None:
            canvas.whisker(x(dot.x), *(y(end) for end in dot.interval))
        canvas.add(mark(dot.kind, x(dot.x), y(dot.y)) + "</g>")
        if box is not None:
            canvas.text(box[0], box[3] - 4, dot.name)
    _draw_legend(canvas, legend, _SCATTER_HEIGHT)
    return canvas.svg(title)


def forest(dots: Sequence[Dot], axis: Axis, *, title: str, zero: str) -> str:
    """A row for each named interval along x; the line at zero is called `zero`, the reference's name."""
    left = max(len(dot.name) for dot in dots) * LETTER + 14
    canvas = Canvas(TOP + 30 * len(dots) + BOTTOM)
    ends = [0.0, *(end for dot in dots for end in (dot.x, *(dot.interval or ())))]
    x = fit_scale(axis, ends, left, WIDTH - RIGHT)
    for value in x.spaced_ticks():
        canvas.line(x(value), TOP, x(value), canvas.bottom, "grid")
    draw_x_axis(canvas, x)
    canvas.line(x(0), TOP - 4, x(0), canvas.bottom, "zero")
    half = len(zero) * LETTER / 2
    canvas.text(min(max(x(0), half), WIDTH - half), TOP - 12, zero, anchor="middle", style="quiet")
    for row, dot in enumerate(dots):
        y = TOP + 30 * row + 15
        canvas.text(0, y + 4, dot.name)
        canvas.add(f'<g class="k{dot.kind % NUM_KINDS}"><title>{escape(dot.tip)}</title>')
        if dot.interval is not None:
            low, high = (x(end) for end in dot.interval)
            canvas.line(low, y, high, y, "whisker")
            for end in (low, high):
                canvas.line(end, y - 4, end, y + 4, "whisker")
        canvas.add(mark(dot.kind, x(dot.x), y) + "</g>")
    return canvas.svg(title)


def curves(
    lines: Sequence[Line], x_axis: Axis, y_axis: Axis, *, title: str, limits: tuple[float, float], rungs: Sequence[int]
) -> str:
    """Trials over their steps; a loss above the limit is an arrow at the upper edge."""
    canvas = Canvas(270)
    y = fit_scale(y_axis, limits, canvas.bottom, TOP)
    steps = [step for line in lines for step, _ in line.points]
    x = fit_scale(x_axis, [0.0, *steps, *map(float, rungs)], y.text_width(), WIDTH - RIGHT, pad=0.0)
    draw_frame(canvas, x, y)
    previous = -math.inf
    for number, rung in enumerate(rungs, start=1):
        canvas.line(x(rung), TOP, x(rung), canvas.bottom, "rung")
        name = f"rung {number}" if x(rung) - previous > 7 * LETTER else str(number)
        canvas.text(x(rung), TOP - 5, name, anchor="middle", style="quiet")
        previous = x(rung)
    for curve in sorted(lines, key=lambda line: (line.strong, not line.cut)):
        style = "strong" if curve.strong else "cut" if curve.cut else "plain"
        canvas.add(f'<g class="curve {style}"><title>{escape(curve.tip)}</title>')
        canvas.add(path([(x(step), y(value)) for step, value in curve.points]))
        for step, value in curve.points:
            canvas.add(curve_mark(x(step), y(value), is_last=step == curve.points[-1][0], is_cut=curve.cut))
        canvas.add("</g>")
    canvas.count_arrows([x(step) for line in lines for step, value in line.points if y(value) < TOP])
    return canvas.svg(title)


def strips(
    series: Sequence[Series], x_axis: Axis | Groups, y_axis: Axis, *, title: str, limits: tuple[float, float]
) -> str:
    """Points over a searched value; where the axis has names, a line joins the lowest points of each series."""
    legend = legend_rows(series, _legend_width)
    canvas = Canvas(_STRIPS_HEIGHT + 8 + LINE * len(legend))
    bottom = _STRIPS_HEIGHT - BOTTOM
    y = fit_scale(y_axis, limits, bottom, TOP)
    x = fit_values(x_axis, [dot.x for part in series for dot in part.points], y.text_width())
    draw_frame(canvas, x, y, bottom=bottom)
    dodge = min(9.0, 60.0 / max(len(series), 1)) if isinstance(x_axis, Groups) else 0.0
    for index, part in enumerate(series):
        shift = dodge * (index - (len(series) - 1) / 2)
        _draw_series(canvas, part, x, y, shift, is_joined=isinstance(x_axis, Groups))
    _draw_legend(canvas, legend)
    return canvas.svg(title)


def trends(series: Sequence[Series], x_axis: Axis, y_axis: Axis, *, title: str) -> str:
    """Measured values with their intervals over a quantity; a line joins a series, and the legend names it.

    A point that has a name shows it. Points of different series at one place stand side by side.
    """
    legend = legend_rows(series, _legend_width)
    canvas = Canvas(_STRIPS_HEIGHT + 8 + LINE * len(legend))
    bottom = _STRIPS_HEIGHT - BOTTOM
    dots = [dot for part in series for dot in part.points]
    y = fit_scale(y_axis, [end for dot in dots for end in (dot.y, *(dot.interval or ()))], bottom, TOP)
    x = fit_scale(x_axis, [dot.x for dot in dots], y.text_width(), WIDTH - RIGHT, pad=0.08)
    draw_frame(canvas, x, y, bottom=bottom)
    dodge = min(7.0, 40.0 / max(len(series), 1))
    taken: list[Box] = []
    for index, part in enumerate(series):
        shift = dodge * (index - (len(series) - 1) / 2)
        _draw_series(canvas, part, x, y, shift, is_joined=part.joined and len({dot.x for dot in part.points}) > 1)
        taken += [_interval_box(dot, x(dot.x) + shift, y, 5) for dot in part.points]
    for dot in (dot for dot in dots if dot.name):
        at, within = (dot.name, x(dot.x), y(dot.y)), (y.text_width(), TOP, WIDTH, bottom)
        box = place_name(*at, taken, within=within) or boxes_beside(*at, within=within)[0]
        taken.append(box)
        canvas.text(box[0], box[3] - 4, dot.name)
    _draw_legend(canvas, legend)
    return canvas.svg(title)


def bars(rows: Sequence[tuple[str, float]], axis: Axis, *, title: str) -> str:
    """A bar from zero for each named number."""
    left = max(len(name) for name, _ in rows) * LETTER + 10
    canvas = Canvas(8 + 26 * len(rows) + BOTTOM)
    x = Scale(0.0, max(1.0, *(value for _, value in rows)), left, WIDTH - 44, axis)
    draw_x_axis(canvas, x)
    canvas.line(left, 4, left, canvas.bottom, "axis")
    for row, (name, value) in enumerate(rows):
        y = 8 + 26 * row
        canvas.text(left - 8, y + 15, name, anchor="end")
        canvas.add(
            f'<g class="k0"><title>{escape(name)}: {value:.2f}</title>'
            f'<rect class="bar" x="{left:.1f}" y="{y + 3:.1f}" width="{max(x(value) - left, 1):.1f}" height="15"/></g>'
        )
        canvas.text(x(value) + 6, y + 15, f"{value:.2f}", style="quiet")
    return canvas.svg(title)


def _draw_series(canvas: Canvas, series: Series, x: Scale, y: Scale, shift: float, *, is_joined: bool) -> None:
    """The points of a series, moved sideways by `shift`; a value above the upper edge is an arrow."""
    canvas.add(f'<g class="{series.style}">')
    if is_joined:
        lowest = {dot.x: min(other.y for other in series.points if other.x == dot.x) for dot in series.points}
        canvas.add(path([(x(value) + shift, y(lowest[value])) for value in sorted(lowest)], "join"))
    for dot in series.points:
        at = x(dot.x) + shift
        if dot.interval is not None:
            canvas.whisker(at, *(y(end) for end in dot.interval))
        shape = arrow(at) if y(dot.y) < TOP else mark(series.kind, at, y(dot.y), 4.2)
        canvas.add(f"<g><title>{escape(dot.tip)}</title>{shape}</g>")
    canvas.add("</g>")
    canvas.count_arrows([x(dot.x) + shift for dot in series.points if y(dot.y) < TOP])


def _interval_box(dot: Dot, at: float, y: Scale, reach: float) -> Box:
    """What a point and its interval take up, with `reach` to either side."""
    low, high = dot.interval or (dot.y, dot.y)
    return at - reach, y(high) - 2, at + reach, y(low) + 2


def _draw_legend(canvas: Canvas, rows: Sequence[Sequence[Series]], height: float = _STRIPS_HEIGHT) -> None:
    """The names of the series below the x axis of a chart that is so high without them."""
    for row, parts in enumerate(rows):
        left, baseline = 6.0, height + LINE * row + 14
        for part in parts:
            canvas.add(f'<g class="{part.style}">{mark(part.kind, left, baseline - 4, 4.2)}</g>')
            canvas.text(left + 9, baseline, part.name)
            left += _legend_width(part)


def _legend_width(series: Series) -> float:
    return len(series.name) * LETTER + 26
