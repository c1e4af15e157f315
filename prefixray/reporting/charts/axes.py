"""Axes: from a value to its position on the canvas, the ticks, and the drawing of both axes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefixray.reporting.charts.canvas import LETTER, RIGHT, WIDTH, Canvas


def number_text(value: float) -> str:
    """A number with as many digits as it needs."""
    return f"{value:.6g}".replace("-", "\u2212")


@dataclass(frozen=True)
class Axis:
    """The name of the measured quantity, with its unit."""

    label: str
    log: bool = False
    form: Callable[[float], str] = number_text


@dataclass(frozen=True)
class Groups:
    """An axis of names; a point lies at the index of its name."""

    label: str
    names: Sequence[str]


@dataclass(frozen=True)
class Scale:
    """From a value between `low` and `high` to its position between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    axis: Axis

    def __call__(self, value: float) -> float:
        """The position of a value."""
        low, high, value = (math.log10(n) if self.axis.log else n for n in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, most: int) -> list[float]:
        """Round values inside the range."""
        if self.axis.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1, 2, 5), (1, 3), (1,)):
                values = [step * 10.0**power for power in powers for step in steps]
                values = [value for value in values if self.low <= value <= self.high]
                if 2 <= len(values) <= most:
                    return values
            if len(values) > most:
                return values[:: math.ceil(len(values) / most)]
        step = _round_step((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        return [round(k * step, 10) for k in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def spaced_ticks(self) -> list[float]:
        """Of a horizontal scale, the ticks whose texts do not touch."""
        shown: list[float] = []
        free = -math.inf
        for value in self.ticks(6):
            half = len(self.axis.form(value)) * LETTER / 2
            if self(value) - half > free and self(value) + half < WIDTH:
                shown.append(value)
                free = self(value) + half + LETTER
        return shown

    def text_width(self) -> float:
        """Of a vertical scale, the room that its texts take."""
        return max(len(self.axis.form(value)) for value in self.ticks(5)) * LETTER + 10


class NameScale(Scale):
    """A scale of names: each has its tick."""

    def ticks(self, most: int) -> list[float]:
        """The index of every name."""
        return [float(index) for index in range(round(self.high - self.low))]


def fit_scale(axis: Axis, values: Sequence[float], start: float, end: float, pad: float = 0.05) -> Scale:
    """A scale that holds the values, with some room at both ends."""
    low, high = min(values), max(values)
    if axis.log:
        ratio = (high / low) ** pad if high > low else 2.0
        return Scale(low / ratio, high * ratio, start, end, axis)
    room = (high - low) * pad if high > low else max(abs(high) * 0.1, 0.5)
    return Scale(low - room, high + room, start, end, axis)


def fit_values(axis: Axis | Groups, values: Sequence[float], start: float) -> Scale:
    """The horizontal scale of a searched value, from `start` to the right edge; long names are cut."""
    end = WIDTH - RIGHT
    if isinstance(axis, Axis):
        return fit_scale(axis, values, start, end)
    room = int((end - start) / len(axis.names) / LETTER) - 1
    names = [name if len(name) <= room else name[: room - 2] + ".." for name in axis.names]
    return NameScale(-0.5, len(names) - 0.5, start, end, Axis(axis.label, form=lambda index: names[round(index)]))


def upper_limit(settled: Sequence[float], all_values: Sequence[float]) -> float:
    """The end of an axis of losses: every settled loss fits, and a trial that went wrong does not stretch the axis."""
    ordered = sorted(all_values)
    lowest, usual = ordered[0], ordered[len(ordered) // 2]
    return min(ordered[-1], max([*settled, usual + (usual - lowest)]))


def draw_frame(canvas: Canvas, x: Scale, y: Scale, *, bottom: float | None = None) -> None:
    """Horizontal lines at the ticks of y, the name of y above them, and the x axis."""
    for value in y.ticks(5):
        canvas.line(x.start, y(value), x.end, y(value), "grid")
        canvas.text(x.start - 6, y(value) + 4, y.axis.form(value), anchor="end", style="tick")
    canvas.text(0, 13, y.axis.label, style="name y-name")
    draw_x_axis(canvas, x, bottom=bottom)


def draw_x_axis(canvas: Canvas, x: Scale, *, bottom: float | None = None) -> None:
    """The x axis with its ticks and its name, at the bottom of the plotted area or at the given height."""
    bottom = canvas.bottom if bottom is None else bottom
    canvas.line(x.start, bottom, x.end, bottom, "axis")
    for value in x.spaced_ticks():
        canvas.line(x(value), bottom, x(value), bottom + 4, "axis")
        canvas.text(x(value), bottom + 17, x.axis.form(value), anchor="middle", style="tick")
    canvas.text((x.start + x.end) / 2, bottom + 36, x.axis.label, anchor="middle", style="name x-name")


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999)
