"""The drawing of one chart: its elements as SVG, in units of which a letter is 12 high; y grows downwards."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TypeVar

WIDTH = 420.0  # of every chart
LETTER = 6.3  # assumed width of a letter
LINE = 17.0  # height of a line of text
NUM_KINDS = 6  # colours, each with a shape of its own
TOP, RIGHT, BOTTOM = 34.0, 16.0, 44.0  # room for the y axis's name, for half a tick's text, for the x axis

Part = TypeVar("Part")
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass
class Canvas:
    """The elements of one chart, in the order in which they are drawn."""

    height: float
    elements: list[str] = field(default_factory=list)

    @property
    def bottom(self) -> float:
        """The lower edge of the plotted area."""
        return self.height - BOTTOM

    def add(self, element: str) -> None:
        """Draw an element that is SVG already."""
        self.elements.append(element)

    def text(self, x: float, y: float, text: str, *, anchor: str = "start", style: str = "") -> None:
        """Write a text, escaped; `style` is a class of the page."""
        style = f' class="{style}"' if style else ""
        self.add(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        """Draw a straight line."""
        self.add(f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def whisker(self, x: float, low: float, high: float) -> None:
        """Draw a vertical interval with a short line at both ends."""
        self.line(x, low, x, high, "whisker")
        for end in (low, high):
            self.line(x - 4, end, x + 4, end, "whisker")

    def count_arrows(self, xs: Sequence[float]) -> None:
        """Write the number of arrows beside those that lie on one another."""
        for x, count in Counter(xs).items():
            if count > 1:
                self.text(x + 6, TOP + 9, str(count), style="tick")

    def svg(self, title: str) -> str:
        """The finished chart; a screen reader says `title`."""
        elements = "\n".join(self.elements)
        size = f'viewBox="0 0 {WIDTH:.0f} {self.height:.0f}"'
        return f'<svg {size} role="img" aria-label="{escape(title)}">\n{elements}\n</svg>'


def mark(kind: int, x: float, y: float, r: float = 5.0) -> str:
    """The shape of a kind, centred on a point: circle, square, triangle, diamond, triangle upside down, plus."""
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
            half = [(third, -r), (third, -third), (r, -third), (r, third), (third, third), (third, r)]
            corners = [*half, *((-a, -b) for a, b in half)]
    return f'<polygon class="mark" points="{" ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)}"/>'


def arrow(x: float) -> str:
    """An arrow at the upper edge: the value lies above it."""
    return f'<path class="beyond" d="M{x - 4:.1f},{TOP + 6:.1f} L{x:.1f},{TOP:.1f} L{x + 4:.1f},{TOP + 6:.1f}"/>'


def curve_mark(x: float, y: float, *, is_last: bool, is_cut: bool) -> str:
    """A point of a curve: an arrow above the upper edge, a cross where the trial was stopped, else a dot."""
    if y < TOP:
        return arrow(x)
    if not is_last:
        return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="1.6"/>'
    if is_cut:
        return f'<path class="end" d="M{x - 3.5:.1f},{y - 3.5:.1f} l7,7 m0,-7 l-7,7"/>'
    return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>'


def path(points: Sequence[Point], style: str = "") -> str:
    """Lines along the points; where they leave the plotted area above, they end at its edge and begin again."""
    pieces: list[list[Point]] = [[]]
    for i, (x, y) in enumerate(points):
        if i and (y < TOP) != (points[i - 1][1] < TOP):
            before_x, before_y = points[i - 1]
            pieces[-1].append((before_x + (x - before_x) * (TOP - before_y) / (y - before_y), TOP))
            if y < TOP:
                pieces.append([])
        if y >= TOP:
            pieces[-1].append((x, y))
    drawn = [" ".join(f"{x:.1f},{y:.1f}" for x, y in piece) for piece in pieces if len(piece) > 1]
    style = f' class="{style}"' if style else ""
    return "".join(f'<polyline{style} points="{piece}"/>' for piece in drawn)


def legend_rows(parts: Sequence[Part], width_of: Callable[[Part], float]) -> list[list[Part]]:
    """The parts of a legend in rows that fit the width of a chart."""
    rows: list[list[Part]] = []
    room = 0.0
    for part in parts:
        if width_of(part) > room:
            rows.append([])
            room = WIDTH
        rows[-1].append(part)
        room -= width_of(part)
    return rows


def place_name(name: str, x: float, y: float, taken: Sequence[Box], *, within: Box) -> Box | None:
    """A box for a name beside its point: the first candidate that touches nothing; None where all touch something."""
    free = (box for box in boxes_beside(name, x, y, within=within) if not any(_touch(box, other) for other in taken))
    return next(free, None)


def boxes_beside(name: str, x: float, y: float, *, within: Box) -> list[Box]:
    """Boxes for a name beside its point, the nearest first: those inside, or one outside where none is."""
    width = len(name) * LETTER
    corners = [(x + 9, y - 9), (x - 9 - width, y - 9)]
    for top in (y - 24, y + 8, y - 38, y + 22, y - 52, y + 36):
        corners += [(x + 9, top), (x - 9 - width, top)]
    boxes = [(left, top, left + width, top + LINE) for left, top in corners]
    inside = [b for b in boxes if b[0] >= within[0] and b[1] >= within[1] and b[2] <= within[2] and b[3] <= within[3]]
    return inside or boxes[:1]


def _touch(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
