"""A page of sections as one HTML file and as Markdown; the report on one sweep is such a page.

The HTML file needs no network and no font; its style and its script come from `templates/`. The script lets long
tables be sorted, and the page can be read without it. Every text that comes from data is escaped.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from prefixray.data.catalog import task_title
from prefixray.reporting.grid import Grid, escaped, one_line
from prefixray.reporting.sections import Example, Section, sections
from prefixray.results.record import Stored, is_finished
from prefixray.system.atomic_files import write_whole

_INTERVAL = re.compile(r"^(\S+) (\[.*\])$")


def write_page(stored: Stored, folder: Path) -> list[Path]:
    """Write `report.html` and `report.md` into a sweep's folder; return both paths."""
    contents = {"report.html": render_html(stored, folder), "report.md": render_page_markdown(stored, folder)}
    for name, content in contents.items():
        write_whole(folder / name, content)
    return [folder / name for name in contents]


def render_html(stored: Stored, folder: Path) -> str:
    """The report as HTML."""
    return html_page(*_headline(stored, folder), sections(stored, folder))


def render_page_markdown(stored: Stored, folder: Path) -> str:
    """The report as Markdown."""
    return markdown_page(*_headline(stored, folder), sections(stored, folder))


def html_page(name: str, subtitle: str, parts: Sequence[Section]) -> str:
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
    template = environment.get_template("report.html")
    return template.render(name=name, subtitle=subtitle, sections=parts)


def markdown_page(name: str, subtitle: str, parts: Sequence[Section]) -> str:
    """The sections as Markdown: of every chart its question, its caption and its numbers."""
    texts = [f"# {escaped(name)}", escaped(subtitle)]
    for section in parts:
        texts += _section_markdown(section)
    return "\n\n".join(texts) + "\n"


def _headline(stored: Stored, folder: Path) -> tuple[str, str]:
    """The sweep's name, and a line with its methods, base and task."""
    if not is_finished(stored):
        return folder.resolve().name, "a search whose final stage is still to come"
    base = stored["base"].partition(":")[2] or stored["base"]
    methods = list(dict.fromkeys(arm["method"] for arm in stored["arms"] if arm["method"] is not None))
    return stored["sweep"], f"{', '.join(methods)} for {base} on {task_title(stored['task'])}"


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
    parts += map(_example_markdown, section.examples)
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
