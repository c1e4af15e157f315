"""Parallel coordinates: an axis for each searched value and one for the loss; a line across them for each trial."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from prefixray.reporting.charts.axes import Axis, NameScale, Scale, fit_scale
from prefixray.reporting.charts.canvas import LETTER, LINE, WIDTH, Canvas, path

_HEIGHT = 300.0
_MOST = 14  # letters of a tick
_TOP = 34.0 + LINE  # the names of the axes take two rows in turn


@dataclass(frozen=True)
class Upright:
    """An axis: its name, and its places from the bottom up; names stand for values that are no numbers."""

    name: str
    scale: Axis | Sequence[str]
    limits: tuple[float, float] = (0.0, 1.0)  # of numbers


@dataclass(frozen=True)
class Across:
    """A trial: its place on each axis, an index where the axis has names; an axis may be missing."""

    places: Mapping[str, float]
    tip: str
    cut: bool = False  # whether it was stopped
    strong: bool = False


def parallel(uprights: Sequence[Upright], lines: Sequence[Across], *, title: str) -> str:
    """The trials across the axes, the strong one on top; a place beyond an axis is drawn at its end."""
    canvas = Canvas(_HEIGHT)
    bottom = _HEIGHT - LINE
    scales = {upright.name: _scale(upright, bottom) for upright in uprights}
    first, last = (len(uprights[end].name) * LETTER / 2 + 2 for end in (0, -1))
    room = max(len(text) for _, text in _ticks(uprights[0], scales[uprights[0].name], _MOST))
    left = max(first, room * LETTER + 8)
    step = (WIDTH - last - left) / max(len(uprights) - 1, 1)
    last_name = uprights[-1].name
    xs = {upright.name: left + step * index for index, upright in enumerate(uprights)}
    for line in sorted(lines, key=lambda line: (line.strong, not line.cut)):
        points = [(xs[name], min(max(scales[name](place), _TOP), bottom)) for name, place in line.places.items()]
        style = "strong" if line.strong else "cut" if line.cut else "plain"
        canvas.add(f'<g class="curve {style}"><title>{escape(line.tip)}</title>{path(points)}</g>')
    for index, upright in enumerate(uprights):
        x = xs[upright.name]
        canvas.line(x, _TOP, x, bottom, "axis")
        baseline = 13 + (LINE if index % 2 else 0)
        canvas.text(
            x, baseline, upright.name, anchor="middle", style="name y-name" if x == xs[last_name] else "name x-name"
        )
        for y, text in _ticks(upright, scales[upright.name], min(_MOST, int(step / LETTER) - 2) if index else _MOST):
            canvas.line(x - 3, y, x, y, "axis")
            canvas.text(x - 6, y + 4, text, anchor="end", style="tick halo")
    return canvas.svg(title)


def _scale(upright: Upright, bottom: float) -> Scale:
    if isinstance(upright.scale, Axis):
        return fit_scale(upright.scale, upright.limits, bottom, _TOP)
    return NameScale(-0.5, len(upright.scale) - 0.5, bottom, _TOP, Axis(upright.name))


def _ticks(upright: Upright, scale: Scale, most: int) -> list[tuple[float, str]]:
    """The heights of the ticks with their texts, names of at most so many letters."""
    if isinstance(upright.scale, Axis):
        return [(scale(value), upright.scale.form(value)) for value in scale.ticks(5)]
    names = [name if len(name) <= most else name[: most - 2] + ".." for name in upright.scale]
    return [(scale(float(index)), name) for index, name in enumerate(names)]
