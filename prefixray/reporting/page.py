"""The report as one HTML file and as Markdown, from the same sections.

The HTML needs nothing besides itself: no network, no font, no script. A small script lets long tables be sorted where
scripts may run. All text that comes from data is escaped.
"""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from prefixray.data.catalog import task_title
from prefixray.reporting.figures import Figure
from prefixray.reporting.grid import Grid, escaped
from prefixray.reporting.sections import Example, Section, sections
from prefixray.results.record import Stored, is_finished
from prefixray.system.atomic_files import write_whole

_INTERVAL = re.compile(r"^(\S+) (\[.*\])$")

_STYLE = """
:root { color-scheme: light dark;
  --paper: #fdfdfb; --ink: #1d1f22; --quiet: #63676d; --rule: #dcdcd6; --soft: #f3f3ee;
  --k0: #0a5c9e; --k1: #b04a00; --k2: #1b7a55; --k3: #7b3fa0; --k4: #9a6a00; --k5: #5b6570; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #17191c; --ink: #e6e6e2; --quiet: #a2a6ab; --rule: #3a3d42; --soft: #202327;
  --k0: #6fb4ee; --k1: #f19a5b; --k2: #62c79a; --k3: #c79be6; --k4: #dcb35a; --k5: #aeb6bf; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 70rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header { margin-bottom: 2rem; }
h1 { font-size: 2rem; line-height: 1.15; font-weight: 650; margin: 0 0 .35rem; letter-spacing: -.015em;
  overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.25; font-weight: 650; margin: 0 0 .75rem; }
h3 { font-size: 1rem; line-height: 1.35; font-weight: 650; margin: 0 0 .4rem; }
p { margin: 0 0 .7rem; max-width: 44rem; overflow-wrap: anywhere; }
header p { color: var(--quiet); margin: 0; }
section { margin: 0 0 3rem; padding-top: 1.5rem; border-top: 1px solid var(--rule); }
nav { font-size: .9rem; margin: 0 0 1.5rem; }
nav a { margin-right: 1rem; white-space: nowrap; }
a { color: var(--k0); text-underline-offset: .15em; }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .38rem .85rem .38rem 0; white-space: nowrap;
  border-bottom: 1px solid var(--rule); }
th + th, th + td, td + td { padding-left: .35rem; }
thead th { font-weight: 600; color: var(--quiet); vertical-align: bottom; border-bottom: 1px solid var(--ink); }
tbody th { font-weight: 600; }
th:first-child { position: sticky; left: 0; background: var(--paper); }
.left { text-align: left; }
.interval { color: var(--quiet); }
thead button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
thead button:hover { color: var(--ink); text-decoration: underline; }
.figures { display: grid; gap: 2.25rem 2.5rem; margin-top: 1.75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .9rem; color: var(--quiet); margin-top: .35rem; }
svg { display: block; width: 100%; max-width: 33rem; height: auto; overflow: visible; }
svg text { font-size: 12px; fill: var(--ink); }
svg .tick, svg .quiet { fill: var(--quiet); }
svg .tick { font-variant-numeric: tabular-nums; }
svg .name { fill: var(--ink); }
.k0 { color: var(--k0); } .k1 { color: var(--k1); } .k2 { color: var(--k2); }
.k3 { color: var(--k3); } .k4 { color: var(--k4); } .k5 { color: var(--k5); }
.mark { fill: currentColor; stroke: currentColor; stroke-width: 1.4; }
.hollow .mark { fill: var(--paper); }
.bar { fill: currentColor; }
.whisker { stroke: currentColor; stroke-width: 1.4; }
.grid { stroke: var(--rule); stroke-width: 1; }
.axis { stroke: var(--quiet); stroke-width: 1; }
.zero { stroke: var(--ink); stroke-width: 1.2; }
.rung { stroke: var(--quiet); stroke-width: 1; stroke-dasharray: 2 4; }
.join { fill: none; stroke: currentColor; stroke-width: 1.4; }
.hollow .join { stroke-dasharray: 3 3; }
.beyond { fill: none; stroke: currentColor; stroke-width: 1.5; }
.curve { color: var(--quiet); } .curve.strong { color: var(--k0); }
.curve polyline { fill: none; stroke: currentColor; stroke-width: 1.3; }
.curve.cut polyline { stroke-width: 1; opacity: .65; }
.curve.strong polyline { stroke-width: 2.6; }
.curve:hover { color: var(--k1); } .curve:hover polyline { opacity: 1; stroke-width: 2.6; }
.dot { fill: currentColor; } .end { stroke: currentColor; stroke-width: 1.6; fill: none; }
details { margin: .4rem 0 0; font-size: .9rem; }
summary { cursor: pointer; color: var(--quiet); }
details > .scroll { margin-top: .6rem; }
pre { background: var(--soft); padding: .8rem 1rem; overflow-x: auto; font-size: .82rem; line-height: 1.5;
  border-radius: 4px; margin: 0 0 1rem; max-width: 60rem; }
pre, code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
article { padding: 1.1rem 0; border-top: 1px solid var(--rule); max-width: 60rem; }
article h3 { font-size: .82rem; color: var(--quiet); font-weight: 600; margin-bottom: .3rem; }
.source { font-size: .95rem; font-weight: 600; overflow-wrap: anywhere; max-width: none; }
dd details { margin: .1rem 0 .2rem; }
dl { display: grid; grid-template-columns: max-content max-content minmax(0, 1fr); gap: .3rem 1rem; margin: 0;
  font-size: .93rem; line-height: 1.45; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
dd.score { color: var(--quiet); font-variant-numeric: tabular-nums; text-align: right; }
@media (max-width: 34rem) {
  body { padding-top: 1.5rem; } h1 { font-size: 1.6rem; }
  dl { grid-template-columns: minmax(0, 1fr) max-content; gap: 0 1rem; }
  dt { font-weight: 600; } dd.text { grid-column: 1 / -1; margin-bottom: .45rem; } }
@media print { details { display: none; } section { break-inside: auto; } figure, article { break-inside: avoid; } }
"""

_SCRIPT = """
for (const head of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.type = "button"; button.textContent = head.textContent; button.title = "sort"; head.replaceChildren(button);
  button.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], at = head.cellIndex, down = head.ariaSort !== "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "ascending" : "descending");
    const key = row => row.cells[at].textContent.trim(), number = text => parseFloat(text.replace("\\u2212", "-"));
    const order = (a, b) => { const x = number(a), y = number(b);
      return isNaN(x) || isNaN(y) ? (isNaN(x) - isNaN(y)) || a.localeCompare(b) : x - y; };
    const rows = [...body.rows].sort((a, b) => order(key(a), key(b)) * (down ? 1 : -1));
    body.append(...rows);
  });
}
"""


def write_page(stored: Stored, folder: Path) -> list[Path]:
    """Write `report.html` and `report.md` into a sweep's folder; both paths."""
    contents = {"report.html": render_html(stored, folder), "report.md": render_page_markdown(stored, folder)}
    for name, content in contents.items():
        write_whole(folder / name, content)
    return [folder / name for name in contents]


def render_html(stored: Stored, folder: Path) -> str:
    """The whole file."""
    parts = sections(stored, folder)
    links = " ".join(f'<a href="#{part.key}">{escape(part.title)}</a>' for part in parts)
    body = "\n".join(_section_html(part) for part in parts)
    name, subtitle = _headline(stored, folder)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(name)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(name)}</h1>
<p>{escape(subtitle)}</p>
</header>
<nav aria-label="sections">{links}</nav>
<main>
{body}
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def render_page_markdown(stored: Stored, folder: Path) -> str:
    """The same in Markdown: every chart as its question, its caption and its numbers."""
    name, subtitle = _headline(stored, folder)
    parts = [f"# {escaped(name)}", escaped(subtitle)]
    for section in sections(stored, folder):
        parts += _section_markdown(section)
    return "\n\n".join(parts) + "\n"


def _headline(stored: Stored, folder: Path) -> tuple[str, str]:
    """The sweep's name, and what it is about."""
    if not is_finished(stored):
        return folder.resolve().name, "a search whose final stage is still to come"
    base = stored["base"].partition(":")[2] or stored["base"]
    methods = list(dict.fromkeys(arm["method"] for arm in stored["arms"] if arm["method"] is not None))
    return stored["sweep"], f"{', '.join(methods)} for {base} on {task_title(stored['task'])}"


def _section_html(section: Section) -> str:
    parts = [f'<section id="{section.key}">', f"<h2>{escape(section.title)}</h2>"]
    if section.grid is not None:
        parts.append(_grid_html(section.grid))
    parts += [f"<p>{escape(text)}</p>" for text in (*section.text, section.reading) if text]
    if section.figures:
        parts += ['<div class="figures">', *map(_figure_html, section.figures), "</div>"]
    parts += map(_example_html, section.examples)
    parts += [f"<pre><code>{escape(code)}</code></pre>" for code in section.code]
    if section.folded is not None:
        table = _grid_html(section.folded, sortable=True)
        parts.append(f"<details><summary>All trials of the search</summary>{table}</details>")
    return "\n".join([*parts, "</section>"])


def _figure_html(figure: Figure) -> str:
    numbers = f"<details><summary>The numbers</summary>{_grid_html(figure.numbers)}</details>" if figure.chart else ""
    shown = figure.chart or _grid_html(figure.numbers)
    told = f"{figure.reading} {figure.caption}".strip() if figure.chart else figure.caption
    caption = f"<figcaption>{escape(told)}</figcaption>"
    return f"<figure>\n<h3>{escape(figure.title)}</h3>\n{shown}\n{caption}\n{numbers}</figure>"


def _grid_html(grid: Grid, *, sortable: bool = False) -> str:
    left = [head in grid.left for head in grid.header]
    heads = [f'<th scope="col"{_side(s)}>{escape(head)}</th>' for head, s in zip(grid.header, left, strict=True)]
    rows = []
    for row in grid.rows:
        first = f'<th scope="row"{_side(left[0])}>{escape(row[0].strip())}</th>'
        cells = [f"<td{_side(s)}>{_cell_html(cell)}</td>" for cell, s in zip(row[1:], left[1:], strict=True)]
        rows.append(f"<tr>{first}{''.join(cells)}</tr>")
    kind = ' class="sortable"' if sortable else ""
    head, body = f"<thead><tr>{''.join(heads)}</tr></thead>", "\n".join(rows)
    return f'<div class="scroll" tabindex="0"><table{kind}>{head}<tbody>\n{body}\n</tbody></table></div>'


def _side(at_left: bool) -> str:
    return ' class="left"' if at_left else ""


def _cell_html(cell: str) -> str:
    """A cell; an interval is quieter than its value."""
    text = _cell_text(cell)
    found = _INTERVAL.match(text)
    if found is None:
        return escape(text)
    return f'{escape(found[1])} <span class="interval">{escape(found[2])}</span>'


def _cell_text(cell: str) -> str:
    """Without the spaces that align the cells of a terminal."""
    return " ".join(cell.split()).replace("[ ", "[")


def _example_html(example: Example) -> str:
    why = f"<h3>{escape(example.why)}</h3>" if example.why else ""
    pairs = [_pair_html("reference", example.references, "")]
    pairs += [_pair_html(output.arm, [output.text], output.score) for output in example.outputs]
    source = f'<p class="source">{escape(example.source)}</p>'
    return f"<article>{why}{source}<dl>{''.join(pairs)}</dl></article>"


def _pair_html(name: str, texts: Sequence[str], score: str) -> str:
    shown, *more = (escape(" ".join(text.split())) or "<i>(nothing)</i>" for text in texts)
    if more:
        others = f"{len(more)} more reference{'s' if len(more) > 1 else ''}"
        shown += f"<details><summary>{others}</summary>{'<br>'.join(more)}</details>"
    return f'<dt>{escape(name)}</dt><dd class="score">{escape(score)}</dd><dd class="text">{shown}</dd>'


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
    """Escaped but for the bar between cells, which the grid escapes itself."""
    return "|".join(escaped(part) for part in _cell_text(cell).split("|"))


def _example_markdown(example: Example) -> str:
    why = [f"*{escaped(example.why)}*", ""] if example.why else []
    lines = [*why, f"**{escaped(' '.join(example.source.split()))}**", ""]
    lines += [f"- reference: {escaped(' '.join(text.split()))}" for text in example.references]
    for output in example.outputs:
        score = f" ({output.score})" if output.score else ""
        lines.append(f"- {escaped(output.arm)}{score}: {escaped(' '.join(output.text.split()))}")
    return "\n".join(lines)
