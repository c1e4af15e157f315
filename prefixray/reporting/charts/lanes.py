"""A lane for each worker over time: a bar for what it did, as many layers high as it did things at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from prefixray.reporting.charts.axes import Axis, Scale, draw_x_axis
from prefixray.reporting.charts.canvas import BOTTOM, LETTER, LINE, RIGHT, WIDTH, Canvas, legend_rows

_ROW, _BAR = 30.0, 22.0  # heights of a lane, and of its bars
_LEAST = 0.5  # a narrower bar is joined with its neighbours
_TOP = 8.0


@dataclass(frozen=True)
class Paint:
    """How a kind of work looks, and its name in the legend."""

    name: str
    style: str  # classes of the page


@dataclass(frozen=True)
class Bar:
    """What was done from `begin` to `end`: shares of the bar's height, from the bottom up, by the kind of work."""

    begin: float
    end: float
    shares: Mapping[str, float]
    tip: str


@dataclass(frozen=True)
class Lane:
    """The bars of one worker, in order; where there is none, it did nothing."""

    name: str
    bars: Sequence[Bar]


def lanes(
    rows: Sequence[Lane], paints: Mapping[str, Paint], axis: Axis, *, end: float, begins: Sequence[float], title: str
) -> str:
    """The lanes from 0 to `end`, with a dotted line at each of `begins`, and the legend below."""
    legend = legend_rows(list(paints.values()), _legend_width)
    plot = _TOP + _ROW * len(rows)
    canvas = Canvas(plot + BOTTOM + LINE * len(legend))
    left = max(len(row.name) for row in rows) * LETTER + 10
    x = Scale(0.0, end, left, WIDTH - RIGHT, axis)
    for index, row in enumerate(rows):
        bottom = _TOP + _ROW * (index + 1) - 4
        canvas.text(0, bottom - _BAR / 2 + 4, row.name)
        canvas.line(x.start, bottom, x.end, bottom, "grid")
        for bar in _joined(row.bars, _LEAST * end / (x.end - x.start)):
            canvas.add(_drawn(bar, x, bottom, paints))
    for at in begins:
        canvas.line(x(at), _TOP - 4, x(at), plot, "rung")
    draw_x_axis(canvas, x, bottom=plot)
    for number, parts in enumerate(legend):
        at, baseline = 0.0, plot + BOTTOM + LINE * number + 10
        for paint in parts:
            box = f'<rect class="bar" x="{at:.1f}" y="{baseline - 9:.1f}" width="10" height="10"/>'
            canvas.add(f'<g class="{paint.style}">{box}</g>')
            canvas.text(at + 15, baseline, paint.name)
            at += _legend_width(paint)
    return canvas.svg(title)


def _drawn(bar: Bar, x: Scale, bottom: float, paints: Mapping[str, Paint]) -> str:
    pieces, width = [], max(x(bar.end) - x(bar.begin), _LEAST)
    for kind, share in bar.shares.items():
        height = _BAR * share
        bottom -= height
        box = f'x="{x(bar.begin):.1f}" y="{bottom:.1f}" width="{width:.1f}" height="{height:.1f}"'
        pieces.append(f'<g class="{paints[kind].style}"><rect class="bar" {box}/></g>')
    return f"<g><title>{escape(bar.tip)}</title>{''.join(pieces)}</g>"


def _joined(bars: Sequence[Bar], least: float) -> list[Bar]:
    """The bars without those too narrow to be seen: they go into one with what follows, which shows the longest."""
    joined: list[Bar] = []
    longest = 0.0  # of the bars that the last one holds
    for bar in bars:
        if joined and joined[-1].end - joined[-1].begin < least and bar.begin - joined[-1].end < least:
            last = joined.pop()
            shown = bar if bar.end - bar.begin > longest else last
            longest = max(longest, bar.end - bar.begin)
            joined.append(Bar(last.begin, bar.end, shown.shares, shown.tip))
        else:
            joined.append(bar)
            longest = bar.end - bar.begin
    return joined


def _legend_width(paint: Paint) -> float:
    return len(paint.name) * LETTER + 30
