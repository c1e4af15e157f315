"""Charts as SVG strings, from plain numbers: no library and no script.

Colours are the page's classes `k0` to `k5`; whatever a colour tells, a shape, a dash or a filling tells too. Every
chart names its axes with their units, carries its numbers as tooltips, and is drawn for the width of a phone.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 420.0  # of every chart in its own units; a letter is 12 of them high
LETTER = 6.3  # how wide a letter is taken to be
LINE = 17.0
NUM_KINDS = 6
_TOP, _RIGHT, _BOTTOM = 34.0, 16.0, 44.0  # room for the y axis's name, for half a tick's text, for the x axis's


def number_text(value: float) -> str:
    """A number with as many digits as it needs."""
    return f"{value:.6g}".replace("-", "\u2212")


@dataclass(frozen=True)
class Axis:
    """What is measured along it, with its unit."""

    label: str
    log: bool = False
    form: Callable[[float], str] = number_text


@dataclass(frozen=True)
class Groups:
    """An axis of names; a point's place on it is the index of its name."""

    label: str
    names: Sequence[str]


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
    cut: bool = False  # it was stopped at its last point
    strong: bool = False


@dataclass(frozen=True)
class Series:
    """Points that belong together; the best of each place are joined."""

    name: str
    points: Sequence[Dot]
    kind: int = 0
    filled: bool = True


@dataclass
class _Scale:
    """From a value to its place between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    axis: Axis

    def __call__(self, value: float) -> float:
        low, high, value = (self._bent(number) for number in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def _bent(self, value: float) -> float:
        return math.log10(value) if self.axis.log else value

    def ticks(self, most: int) -> list[float]:
        """Round values inside the range."""
        if self.axis.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1, 2, 5), (1, 3), (1,)):
                found = [step * 10.0**power for power in powers for step in steps]
                found = [value for value in found if self.low <= value <= self.high]
                if 2 <= len(found) <= most:
                    return found
            if len(found) > most:
                return found[:: math.ceil(len(found) / most)]
        step = _round_step((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        return [round(k * step, 10) for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


class _Places(_Scale):
    """A scale of names: each has its tick."""

    def ticks(self, most: int) -> list[float]:
        return [float(place) for place in range(round(self.high - self.low))]


@dataclass
class _Canvas:
    """The parts of one chart."""

    height: float
    parts: list[str] = field(default_factory=list)

    def add(self, part: str) -> None:
        self.parts.append(part)

    def text(self, x: float, y: float, text: str, *, anchor: str = "start", style: str = "") -> None:
        kind = f' class="{style}"' if style else ""
        self.add(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(text)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        self.add(f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def svg(self, title: str) -> str:
        """The whole chart; `title` is what a screen reader says."""
        inside = "\n".join(self.parts)
        size = f'viewBox="0 0 {WIDTH:.0f} {self.height:.0f}"'
        return f'<svg {size} role="img" aria-label="{escape(title)}">\n{inside}\n</svg>'


def scatter(dots: Sequence[Dot], x_axis: Axis, y_axis: Axis, *, title: str) -> str:
    """Named points with their intervals as whiskers."""
    canvas = _Canvas(290)
    ends = [end for dot in dots for end in (dot.y, *(dot.interval or ()))]
    y = _scale(y_axis, ends, canvas.height - _BOTTOM, _TOP)
    x = _scale(x_axis, [dot.x for dot in dots], _left(y), WIDTH - _RIGHT, pad=0.16)
    _frame(canvas, x, y)
    taken = []
    for dot in dots:
        low, high = dot.interval or (dot.y, dot.y)
        taken.append((x(dot.x) - 7, y(high) - 2, x(dot.x) + 7, y(low) + 2))
    for dot in dots:
        canvas.add(f'<g class="k{dot.kind % NUM_KINDS}"><title>{escape(dot.tip)}</title>')
        if dot.interval is not None:
            _whisker(canvas, x(dot.x), *(y(end) for end in dot.interval))
        canvas.add(_mark(dot.kind, x(dot.x), y(dot.y)) + "</g>")
        place = _free_place(dot.name, x(dot.x), y(dot.y), taken, box=(_left(y), _TOP, WIDTH, canvas.height - _BOTTOM))
        taken.append(place)
        canvas.text(place[0], place[3] - 4, dot.name)
    return canvas.svg(title)


def forest(dots: Sequence[Dot], axis: Axis, *, title: str, zero: str) -> str:
    """A row for each named interval along x, and a line at zero for what they are compared with."""
    left = max(len(dot.name) for dot in dots) * LETTER + 14
    canvas = _Canvas(_TOP + 30 * len(dots) + _BOTTOM)
    ends = [0.0, *(end for dot in dots for end in (dot.x, *(dot.interval or ())))]
    x = _scale(axis, ends, left, WIDTH - _RIGHT)
    bottom = canvas.height - _BOTTOM
    for value in _shown_ticks(x):
        canvas.line(x(value), _TOP, x(value), bottom, "grid")
    _x_axis(canvas, x)
    canvas.line(x(0), _TOP - 4, x(0), bottom, "zero")
    half = len(zero) * LETTER / 2
    canvas.text(min(max(x(0), half), WIDTH - half), _TOP - 12, zero, anchor="middle", style="quiet")
    for row, dot in enumerate(dots):
        y = _TOP + 30 * row + 15
        canvas.text(0, y + 4, dot.name)
        canvas.add(f'<g class="k{dot.kind % NUM_KINDS}"><title>{escape(dot.tip)}</title>')
        if dot.interval is not None:
            low, high = (x(end) for end in dot.interval)
            canvas.line(low, y, high, y, "whisker")
            for end in (low, high):
                canvas.line(end, y - 4, end, y + 4, "whisker")
        canvas.add(_mark(dot.kind, x(dot.x), y) + "</g>")
    return canvas.svg(title)


def curves(
    lines: Sequence[Line], x_axis: Axis, y_axis: Axis, *, title: str, limits: tuple[float, float], rungs: Sequence[int]
) -> str:
    """Trials over their steps; what lies above the limit ends at the upper edge with an arrow."""
    canvas = _Canvas(270)
    y = _scale(y_axis, limits, canvas.height - _BOTTOM, _TOP)
    steps = [step for line in lines for step, _ in line.points]
    x = _scale(x_axis, [0.0, *steps, *map(float, rungs)], _left(y), WIDTH - _RIGHT, pad=0.0)
    _frame(canvas, x, y)
    before = -math.inf
    for place, step in enumerate(rungs, start=1):
        canvas.line(x(step), _TOP, x(step), canvas.height - _BOTTOM, "rung")
        name = f"rung {place}" if x(step) - before > 7 * LETTER else str(place)
        canvas.text(x(step), _TOP - 5, name, anchor="middle", style="quiet")
        before = x(step)
    for curve in sorted(lines, key=lambda one: (one.strong, not one.cut)):
        style = "strong" if curve.strong else "cut" if curve.cut else "plain"
        canvas.add(f'<g class="curve {style}"><title>{escape(curve.tip)}</title>')
        canvas.add(_path([(x(at), y(value)) for at, value in curve.points], _TOP))
        for at, value in curve.points:
            canvas.add(_curve_mark(x(at), y(value), last=at == curve.points[-1][0], cut=curve.cut))
        canvas.add("</g>")
    _count_arrows(canvas, [x(at) for line in lines for at, value in line.points if y(value) < _TOP])
    return canvas.svg(title)


def strips(
    series: Sequence[Series], x_axis: Axis | Groups, y_axis: Axis, *, title: str, limits: tuple[float, float]
) -> str:
    """Points over a searched value; of each series the lowest at each name is joined to the next."""
    legend = _legend(series)
    canvas = _Canvas(270 + LINE * len(legend))
    bottom = 262 - _BOTTOM
    y = _scale(y_axis, limits, bottom, _TOP)
    x = _strip_scale(series, x_axis, _left(y))
    _frame(canvas, x, y, bottom=bottom)
    dodge = min(9.0, 60.0 / max(len(series), 1)) if isinstance(x_axis, Groups) else 0.0
    for index, one in enumerate(series):
        shift = dodge * (index - (len(series) - 1) / 2)
        style = f"k{one.kind % NUM_KINDS} {'filled' if one.filled else 'hollow'}"
        canvas.add(f'<g class="{style}">')
        if isinstance(x_axis, Groups):
            best = {dot.x: min(d.y for d in one.points if d.x == dot.x) for dot in one.points}
            canvas.add(_path([(x(at) + shift, y(best[at])) for at in sorted(best)], _TOP, "join"))
        for dot in one.points:
            above = y(dot.y) < _TOP
            mark = _arrow(x(dot.x) + shift) if above else _mark(one.kind, x(dot.x) + shift, y(dot.y), 4.2)
            canvas.add(f"<g><title>{escape(dot.tip)}</title>{mark}</g>")
        canvas.add("</g>")
        _count_arrows(canvas, [x(dot.x) + shift for dot in one.points if y(dot.y) < _TOP])
    for row, items in enumerate(legend):
        at = 6.0
        for one in items:
            where = 262 + LINE * row + 14
            style = f"k{one.kind % NUM_KINDS} {'filled' if one.filled else 'hollow'}"
            canvas.add(f'<g class="{style}">{_mark(one.kind, at, where - 4, 4.2)}</g>')
            canvas.text(at + 9, where, one.name)
            at += len(one.name) * LETTER + 26
    return canvas.svg(title)


def bars(rows: Sequence[tuple[str, float]], axis: Axis, *, title: str) -> str:
    """A bar for each named number from zero."""
    left = max(len(name) for name, _ in rows) * LETTER + 10
    canvas = _Canvas(8 + 26 * len(rows) + _BOTTOM)
    x = _Scale(0.0, max(1.0, *(value for _, value in rows)), left, WIDTH - 44, axis)
    _x_axis(canvas, x)
    canvas.line(left, 4, left, canvas.height - _BOTTOM, "axis")
    for row, (name, value) in enumerate(rows):
        y = 8 + 26 * row
        told = f"{value:.2f}"
        canvas.text(left - 8, y + 15, name, anchor="end")
        canvas.add(
            f'<g class="k0"><title>{escape(name)}: {told}</title>'
            f'<rect class="bar" x="{left:.1f}" y="{y + 3:.1f}" width="{max(x(value) - left, 1):.1f}" height="15"/></g>'
        )
        canvas.text(x(value) + 6, y + 15, told, style="quiet")
    return canvas.svg(title)


def upper_limit(settled: Sequence[float], all_values: Sequence[float]) -> float:
    """Where an axis of losses ends: all that is settled fits, and no trial that went wrong takes the room."""
    ordered = sorted(all_values)
    usual = ordered[len(ordered) // 2]
    lowest = ordered[0]
    return min(ordered[-1], max([*settled, usual + (usual - lowest)]))


def _scale(axis: Axis, values: Sequence[float], start: float, end: float, pad: float = 0.05) -> _Scale:
    """A scale that holds the values with some room at both ends."""
    low, high = min(values), max(values)
    if axis.log:
        ratio = (high / low) ** pad if high > low else 2.0
        return _Scale(low / ratio, high * ratio, start, end, axis)
    room = (high - low) * pad if high > low else max(abs(high) * 0.1, 0.5)
    return _Scale(low - room, high + room, start, end, axis)


def _strip_scale(series: Sequence[Series], axis: Axis | Groups, left: float) -> _Scale:
    if isinstance(axis, Groups):
        room = int((WIDTH - _RIGHT - left) / len(axis.names) / LETTER) - 1
        names = [name if len(name) <= room else name[: room - 2] + ".." for name in axis.names]
        named = Axis(axis.label, form=lambda value: names[round(value)])
        return _Places(-0.5, len(names) - 0.5, left, WIDTH - _RIGHT, named)
    return _scale(axis, [dot.x for one in series for dot in one.points], left, WIDTH - _RIGHT)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999)


def _left(y: _Scale) -> float:
    """Room for the texts of the y axis."""
    return max(len(y.axis.form(value)) for value in y.ticks(5)) * LETTER + 10


def _frame(canvas: _Canvas, x: _Scale, y: _Scale, *, bottom: float | None = None) -> None:
    """Horizontal lines at the ticks of y with its name above them, and the x axis."""
    for value in y.ticks(5):
        canvas.line(x.start, y(value), x.end, y(value), "grid")
        canvas.text(x.start - 6, y(value) + 4, y.axis.form(value), anchor="end", style="tick")
    canvas.text(0, 13, y.axis.label, style="name y-name")
    _x_axis(canvas, x, bottom=bottom)


def _x_axis(canvas: _Canvas, x: _Scale, *, bottom: float | None = None) -> None:
    bottom = canvas.height - _BOTTOM if bottom is None else bottom
    canvas.line(x.start, bottom, x.end, bottom, "axis")
    for value in _shown_ticks(x):
        canvas.line(x(value), bottom, x(value), bottom + 4, "axis")
        canvas.text(x(value), bottom + 17, x.axis.form(value), anchor="middle", style="tick")
    canvas.text((x.start + x.end) / 2, bottom + 36, x.axis.label, anchor="middle", style="name x-name")


def _shown_ticks(x: _Scale) -> list[float]:
    """Ticks whose texts do not touch."""
    shown: list[float] = []
    free = -math.inf
    for value in x.ticks(6):
        half = len(x.axis.form(value)) * LETTER / 2
        if x(value) - half > free and x(value) + half < WIDTH:
            shown.append(value)
            free = x(value) + half + LETTER
    return shown


def _mark(kind: int, x: float, y: float, r: float = 5.0) -> str:
    """A shape of its own for each kind."""
    match kind % NUM_KINDS:
        case 0:
            return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"/>'
        case 1:
            corners = [(-r, -r), (r, -r), (r, r), (-r, r)]
        case 2:
            corners = [(0, -1.3 * r), (1.2 * r, 0.9 * r), (-1.2 * r, 0.9 * r)]
        case 3:
            corners = [(0, -1.35 * r), (1.35 * r, 0), (0, 1.35 * r), (-1.35 * r, 0)]
        case 4:
            corners = [(0, 1.3 * r), (1.2 * r, -0.9 * r), (-1.2 * r, -0.9 * r)]
        case _:
            third = r / 2.6
            quarter = [(third, -r), (third, -third), (r, -third), (r, third), (third, third), (third, r)]
            corners = [*quarter, *((-a, -b) for a, b in quarter)]
    return f'<polygon class="mark" points="{" ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)}"/>'


def _arrow(x: float) -> str:
    """What lies above the upper edge."""
    return f'<path class="beyond" d="M{x - 4:.1f},{_TOP + 6:.1f} L{x:.1f},{_TOP:.1f} L{x + 4:.1f},{_TOP + 6:.1f}"/>'


def _count_arrows(canvas: _Canvas, places: Sequence[float]) -> None:
    """Beside arrows that lie on one another, how many they are."""
    for x, count in Counter(places).items():
        if count > 1:
            canvas.text(x + 6, _TOP + 9, str(count), style="tick")


def _curve_mark(x: float, y: float, *, last: bool, cut: bool) -> str:
    if y < _TOP:
        return _arrow(x)
    if not last:
        return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="1.6"/>'
    if cut:
        return f'<path class="end" d="M{x - 3.5:.1f},{y - 3.5:.1f} l7,7 m0,-7 l-7,7"/>'
    return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>'


def _whisker(canvas: _Canvas, x: float, low: float, high: float) -> None:
    canvas.line(x, low, x, high, "whisker")
    for end in (low, high):
        canvas.line(x - 4, end, x + 4, end, "whisker")


def _path(points: Sequence[tuple[float, float]], top: float, style: str = "") -> str:
    """Lines along the points, in as many pieces as lie below the upper edge."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for i, (x, y) in enumerate(points):
        if i and (y < top) != (points[i - 1][1] < top):
            before_x, before_y = points[i - 1]
            pieces[-1].append((before_x + (x - before_x) * (top - before_y) / (y - before_y), top))
            if y < top:
                pieces.append([])
        if y >= top:
            pieces[-1].append((x, y))
    drawn = [" ".join(f"{x:.1f},{y:.1f}" for x, y in piece) for piece in pieces if len(piece) > 1]
    kind = f' class="{style}"' if style else ""
    return "".join(f'<polyline{kind} points="{piece}"/>' for piece in drawn)


_Box = tuple[float, float, float, float]  # left, top, right, bottom


def _free_place(text: str, x: float, y: float, taken: Sequence[_Box], *, box: _Box) -> _Box:
    """Where a name fits beside its point: the first of some places that touches nothing, or else the first."""
    width = len(text) * LETTER
    corners = [(x + 9, y - 9), (x - 9 - width, y - 9)]
    for high in (y - 24, y + 8, y - 38, y + 22, y - 52, y + 36):
        corners += [(x + 9, high), (x - 9 - width, high)]
    places = [(left, top, left + width, top + LINE) for left, top in corners]
    inside = [p for p in places if p[0] >= box[0] and p[1] >= box[1] and p[2] <= box[2] and p[3] <= box[3]]
    free = [p for p in inside if not any(_touch(p, other) for other in taken)]
    return next(iter([*free, *inside, *places]))


def _touch(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _legend(series: Sequence[Series]) -> list[list[Series]]:
    """The series in rows that fit the width."""
    rows: list[list[Series]] = []
    room = 0.0
    for one in series:
        needed = len(one.name) * LETTER + 26
        if needed > room:
            rows.append([])
            room = WIDTH
        rows[-1].append(one)
        room -= needed
    return rows
