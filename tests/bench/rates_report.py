"""The map of learning rates as a table and as a figure, from the lines that `rates.py` writes."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from prefixray.reporting.charts.axes import Axis, draw_frame, fit_scale
from prefixray.reporting.charts.canvas import LINE, RIGHT, TOP, WIDTH, Canvas, mark, path

Line = Mapping[str, Any]
NEAR = 0.05  # nats above the best dev loss that are as good as the best
COLUMNS = 2  # charts side by side
COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8a5a9e", "#c77d0a", "#555555", "#12a5a5", "#b0a000")
STYLE = (
    "text{font:12px sans-serif;fill:#222}.tick,.quiet{font-size:11px;fill:#666}.name{font-weight:600}"
    ".grid{stroke:#e3e3e3}.axis{stroke:#888}.untuned{stroke:#999;stroke-dasharray:4 3}"
    "polyline{fill:none;stroke-width:1.6}.random polyline{stroke-dasharray:5 3}"
    + "".join(
        f".k{kind} polyline{{stroke:{colour}}}.k{kind} .mark{{fill:{colour};stroke:{colour}}}"
        f".k{kind}.random .mark{{fill:#fff}}"
        for kind, colour in enumerate(COLOURS)
    )
)


def table(lines: Sequence[Line]) -> str:
    """A Markdown table for each data set and schedule: a row for each method, its dev loss at every rate."""
    parts = []
    for (data, steps), group in _parts(lines):
        rows = [
            "| method | P | dev loss at each learning rate | best | as good | diverges from |",
            "|---|---|---|---|---|---|",
        ]
        rows += [_row(one) for one in _rows(group)]
        untuned = group[0]["untuned"]
        parts.append(f"{data}, {steps} steps; the untuned base's dev loss is {untuned:.3f}\n\n" + "\n".join(rows))
    return "\n\n".join(parts)


def _row(lines: Sequence[Line]) -> str:
    first, good = lines[0], [line for line in lines if not line["diverged"]]
    cells = "; ".join(f"{line['rate']:g}: {_loss(line)}" for line in lines)
    name = first["arm"] if first["start"] in (None, "words", "network") else f"{first['arm']} ({first['start']})"
    if not good:
        return f"| {name} | {first['preseqlen'] or ''} | {cells} | - | - | {lines[0]['rate']:g} |"
    best = min(good, key=lambda line: line["last"])
    near = [line["rate"] for line in good if line["last"] <= best["last"] + NEAR]
    beyond = [line["rate"] for line in lines if line["diverged"] and line["rate"] > best["rate"]]
    ends = f"{min(near):g} to {max(near):g}" if len(near) > 1 else f"{near[0]:g}"
    shown = f"**{best['last']:.3f}** at {best['rate']:g}"
    diverges = f"{min(beyond):g}" if beyond else f"none up to {lines[-1]['rate']:g}"
    return f"| {name} | {first['preseqlen'] or ''} | {cells} | {shown} | {ends} | {diverges} |"


def _loss(line: Line) -> str:
    return "diverged" if line["diverged"] else f"{line['last']:.3f}"


def figure(lines: Sequence[Line]) -> str:
    """An SVG with a chart for each data set and schedule, of the prefixes of the usual length and of all others."""
    charts = []
    for (data, steps), group in _parts(lines):
        shown = [line for line in group if line["preseqlen"] in (None, 10)]
        if shown:
            charts.append(_chart(f"{data}, {steps} steps", shown))
    height = max(canvas.height for canvas in charts)
    rows = -(-len(charts) // COLUMNS)
    width = WIDTH * min(COLUMNS, len(charts))
    size = f'viewBox="0 0 {width:.0f} {height * rows:.0f}" width="{width:.0f}" height="{height * rows:.0f}"'
    pieces = [
        f'<g transform="translate({WIDTH * (number % COLUMNS):.0f} {height * (number // COLUMNS):.0f})">'
        + "\n".join(canvas.elements)
        + "</g>"
        for number, canvas in enumerate(charts)
    ]
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>{background}{"".join(pieces)}</svg>\n'


def _chart(title: str, lines: Sequence[Line]) -> Canvas:
    """Dev loss over the learning rate, a curve for each method: a random start is hollow and dashed.

    What diverged is not drawn.
    """
    rows = [one for one in _rows(lines) if any(not line["diverged"] for line in one)]
    legend = -(-len(rows) // 2)
    canvas = Canvas(300.0 + LINE * legend)
    bottom = 256.0
    untuned = lines[0]["untuned"]
    good = [line for one in rows for line in one if not line["diverged"]]
    y = fit_scale(Axis(f"{title}: dev loss (nats)"), [*(line["last"] for line in good), untuned], bottom, TOP)
    x = fit_scale(Axis("learning rate", log=True), [line["rate"] for line in good], y.text_width(), WIDTH - RIGHT)
    draw_frame(canvas, x, y, bottom=bottom)
    canvas.line(x.start, y(untuned), x.end, y(untuned), "untuned")
    canvas.text(x.end, y(untuned) - 4, "untuned base", anchor="end", style="quiet")
    for number, one in enumerate(rows):
        name = one[0]["arm"]
        kind, style = _place(name), "random" if name.endswith("random") else "words"
        points = [(x(line["rate"]), y(line["last"])) for line in one if not line["diverged"]]
        canvas.add(f'<g class="k{kind} {style}"><title>{escape(name)}</title>{path(points)}')
        canvas.add("".join(mark(kind, *point, 3.6) for point in points))
        left, baseline = 6.0 + WIDTH / 2 * (number % 2), 312.0 + LINE * (number // 2)
        canvas.add(f"{mark(kind, left + 4, baseline - 4, 4.2)}</g>")
        canvas.text(left + 16, baseline, name)
    return canvas


def _place(name: str) -> int:
    """A method's place among all, whatever it starts as."""
    order = ("network", "flat", "LoRA", "adapter", "fine-tuning", "top", "embedding", "infix")
    return next(index for index, word in enumerate(order) if name.startswith(word))


def _parts(lines: Iterable[Line]) -> list[tuple[tuple[str, int], list[Line]]]:
    """The lines by data set and schedule, in the order in which these first come."""
    parts: dict[tuple[str, int], list[Line]] = {}
    for line in lines:
        parts.setdefault((line["data"], line["steps"]), []).append(line)
    return list(parts.items())


def _rows(lines: Iterable[Line]) -> list[list[Line]]:
    """The lines of each method, start and length, by rising rate."""
    key = lambda line: (_place(line["arm"]), line["arm"], line["start"] or "", line["preseqlen"] or 0)  # noqa: E731
    ordered = sorted(lines, key=lambda line: (*key(line), line["rate"]))
    return [list(group) for _, group in groupby(ordered, key)]
