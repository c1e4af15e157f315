"""A page of sections as one HTML file and as Markdown; the report on one sweep is such a page.

The HTML file needs no network and no font; its style and its script come from `templates/`. The script lets long
tables be sorted, and the page can be read without it. Every text that comes from data is escaped.
"""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from prefixray.data.catalog import task_title
from prefixray.reporting.figures import best_trial, count_states
from prefixray.reporting.grid import Grid, escaped, one_line
from prefixray.reporting.sections.section import AllOutputs, Example, Link, Section
from prefixray.reporting.sections.whole import sections
from prefixray.reporting.tables import loss_text
from prefixray.reporting.verdict import verdict
from prefixray.results.record import SearchTrial, Stored, is_finished, of_one_loss
from prefixray.system.atomic_files import write_whole

_INTERVAL = re.compile(r"^(\S+) (\[.*\])$")


@dataclass(frozen=True)
class Head:
    """The top of a page."""

    name: str  # the title of its window
    verdict: str  # the headline
    about: str  # the line below


def write_page(stored: Stored, folder: Path) -> list[Path]:
    """Write `report.html` and `report.md` into a sweep's folder; return both paths."""
    contents = render(stored, folder)
    for name, content in contents.items():
        write_whole(folder / name, content)
    return [folder / name for name in contents]


def render(stored: Stored, folder: Path) -> dict[str, str]:
    """The report as HTML and as Markdown, by the names of their files."""
    head, parts = _head(stored, folder), sections(stored, folder)
    return {"report.html": html_page(head, parts), "report.md": markdown_page(head, parts)}


def html_page(head: Head, parts: Sequence[Section]) -> str:
    """The sections as HTML, by `templates/report.html`."""
    environment = Environment(
        loader=PackageLoader("prefixray.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"one_line": one_line, "value_and_interval": _value_and_interval}
    environment.filters |= {"as_json": _as_json, "address": _address}
    template = environment.get_template("report.html")
    return template.render(head=head, sections=parts)


def markdown_page(head: Head, parts: Sequence[Section]) -> str:
    """The sections as Markdown: of every chart its question, its caption and its numbers."""
    texts = [f"# {escaped(head.verdict)}", escaped(head.about)]
    for section in parts:
        texts += _section_markdown(section)
    return "\n\n".join(texts) + "\n"


def _head(stored: Stored, folder: Path) -> Head:
    """The verdict, or how far the search has come; the sweep's name with its methods, base and task."""
    if not is_finished(stored):
        name, lead = folder.resolve().name, "".join(map(_lead, of_one_loss(stored["search"])))
        counts = count_states(stored["search"]) if stored["search"] else "no trial has started"
        so_far = f"No verdict yet: {counts}."
        return Head(name, so_far + lead, f"{name}, a sweep whose final stage is still to come")
    base = stored["base"].partition(":")[2] or stored["base"]
    methods = list(dict.fromkeys(arm["method"] for arm in stored["arms"] if arm["method"] is not None))
    about = f"{stored['sweep']}: {', '.join(methods)} for {base} on {task_title(stored['task'])}"
    return Head(stored["sweep"], verdict(stored).text, about)


def _lead(alike: Sequence[SearchTrial]) -> str:
    """The best of trials with losses of one kind, in a sentence behind others."""
    best = best_trial(alike)
    if best is None:
        return ""
    what = "divergence" if best.get("is_divergence") else "dev loss"
    return f" {best['arm']}/{best['number']} leads with a {what} of {loss_text(best)}."


def _as_json(outputs: AllOutputs) -> str:
    """What the page's script reads; no `<`, so that no text of it ends the script."""
    rows = [
        [one.source, list(one.references), [(output.text, output.score) for output in one.outputs]]
        for one in outputs.examples
    ]
    about = {"arms": list(outputs.arms), "reference": outputs.reference, "metric": outputs.metric}
    content = {**about, "digits": outputs.digits, "sign": 1 if outputs.higher_is_better else -1, "rows": rows}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _address(link: Link) -> str:
    """The file itself where the page holds it, else its name."""
    if link.content is None:
        return link.name
    return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(link.content.encode()).decode()}"


def _value_and_interval(cell: str) -> tuple[str, str]:
    """`"58.3 [51.6, 64.4]"` in two parts; of any other cell the second part is empty."""
    text = _cell_text(cell)
    match = _INTERVAL.match(text)
    return (text, "") if match is None else (match[1], match[2])


def _cell_text(cell: str) -> str:
    """Without the spaces that align the cells of a terminal."""
    return one_line(cell).replace("[ ", "[")


def _section_markdown(section: Section) -> list[str]:
    parts = [f"## {escaped(section.title)}"]
    if section.grid is not None:
        parts.append(_grid_markdown(section.grid))
    parts += map(escaped, section.text)
    for figure in section.figures:
        caption = [escaped(figure.caption)] if figure.caption else []
        parts += [f"### {escaped(figure.title)}", *caption, _grid_markdown(figure.numbers)]
    parts += map(escaped, section.about_examples)
    parts += map(_example_markdown, section.examples)
    parts += [f"- [{link.name}]({link.name}): {escaped(link.what)}" for link in section.links]
    parts += [f"```\n{code.replace('```', '` ` `')}\n```" for code in section.code]
    if section.folded is not None:
        parts.append(_grid_markdown(section.folded))
    return parts


def _grid_markdown(grid: Grid) -> str:
    rows = [[_cell_markdown(cell) for cell in row] for row in grid.rows]
    header = [_cell_markdown(head) for head in grid.header]
    return Grid(header, rows, frozenset(map(_cell_markdown, grid.left))).markdown()


def _cell_markdown(cell: str) -> str:
    """The cell escaped, except for `|`, which the grid escapes itself."""
    return "|".join(escaped(part) for part in _cell_text(cell).split("|"))


def _example_markdown(example: Example) -> str:
    why = [f"*{escaped(example.why)}*", ""] if example.why else []
    lines = [*why, f"**{escaped(one_line(example.source))}**", ""]
    lines += [f"- reference: {escaped(one_line(text))}" for text in example.references]
    for output in example.outputs:
        score = f" ({output.score})" if output.score else ""
        lines.append(f"- {escaped(output.arm)}{score}: {escaped(one_line(output.text))}")
    return "\n".join(lines)
