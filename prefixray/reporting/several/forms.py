"""Several sweeps as a page of sections, and that page in each of its forms."""

from collections.abc import Sequence
from typing import Literal, assert_never

from prefixray.reporting.page import Head, html_page, markdown_page
from prefixray.reporting.sections.section import Section
from prefixray.reporting.several.figures import all_differences, length_figures, size_figures, storage_figures
from prefixray.reporting.several.grids import comparison_rows, difference_grid, score_grid, sweep_grid
from prefixray.reporting.several.side_by_side import OneOf, mean_ranks, num_comparisons
from prefixray.reporting.tables import csv_text
from prefixray.reporting.verdict import caveats, is_significant, seed_caveats, star_text, verdict

Form = Literal["text", "html", "markdown", "csv", "latex"]
SUFFIXES: dict[str, Form] = {".txt": "text", ".html": "html", ".md": "markdown", ".csv": "csv", ".tex": "latex"}


def render(sweeps: Sequence[OneOf], form: Form, saying: str | None = None) -> str:
    """The comparison of the sweeps in one of its forms; `saying` is what somebody else found, such as the paper."""
    match form:
        case "csv":
            return csv_text(comparison_rows(sweeps))
        case "text":
            return _text(sweeps, saying)
        case "latex":
            return _latex(sweeps, saying)
        case "html":
            return html_page(_head(sweeps), several_sections(sweeps, saying))
        case "markdown":
            return markdown_page(_head(sweeps), several_sections(sweeps, saying))
        case _:
            assert_never(form)


def several_sections(sweeps: Sequence[OneOf], saying: str | None = None) -> list[Section]:
    """The sections of the page."""
    figures = [*size_figures(sweeps), *length_figures(sweeps), *storage_figures(sweeps)]
    said = [] if saying is None else [saying]
    parts = [Section("scores", "Which arm is best where?", grid=score_grid(sweeps), text=[*said, *_notes(sweeps)])]
    if figures:
        reading = (
            "Whiskers are 95 % intervals. Over the data a line joins arms of one name; over lengths it joins prefixes "
            "that are equal but for length and learning rate."
        )
        parts.append(Section("figures", "What depends on what?", reading=reading, figures=figures))
    if num_comparisons(sweeps):
        own = "a sweep's own report corrects it over those of that sweep"
        text = [f"p is corrected over all {num_comparisons(sweeps)} comparisons at once; {own}."]
        differences = difference_grid(sweeps)
        title = "Which differences are real?"
        parts.append(Section("differences", title, grid=differences, text=text, figures=all_differences(sweeps)))
    parts.append(Section("sweeps", "Which sweeps are these?", grid=sweep_grid(sweeps), text=_caveats(sweeps)))
    return parts


def _head(sweeps: Sequence[OneOf]) -> Head:
    """Which arms win where, and the names of the sweeps."""
    winners = [winner for sweep in sweeps if (winner := verdict(sweep.results).winner) is not None]
    wins = [f"{name} in {winners.count(name)}" for name in dict.fromkeys(winners)]
    of = f"of {len(sweeps)} sweeps" if len(sweeps) > 1 else ""
    head = f"Winner: {', '.join(wins)} {of}" if wins else f"No winner in any {of}"
    names = ", ".join(sweep.name for sweep in sweeps)
    return Head(names, head if of else verdict(sweeps[0].results).text, names)


def _notes(sweeps: Sequence[OneOf]) -> list[str]:
    """What a reader of the scores needs, and the verdicts; the headline has that of a single sweep."""
    lines = []
    if any(is_significant(arm) for sweep in sweeps for arm in sweep.tuned):
        correction = f"Holm's correction over all {num_comparisons(sweeps)} comparisons"
        lines.append(f"* differs from its sweep's reference: {star_text(correction)}")
    if len(sweeps) > 1 and mean_ranks(sweeps):
        lines.append("mean rank: over the sweeps, 1 is best; it describes these sweeps, and tests nothing")
    return [*lines, *(f"{sweep.name}: {verdict(sweep.results).text}" for sweep in sweeps if len(sweeps) > 1)]


def _caveats(sweeps: Sequence[OneOf]) -> list[str]:
    """What the sweeps note of themselves; a note of several sweeps stands once, with their names."""
    by_note: dict[str, list[str]] = {}
    for sweep in sweeps:
        for note in (*caveats(sweep.results), *seed_caveats(sweep.results)):
            by_note.setdefault(note, []).append(sweep.name)
    return [f"{', '.join(names)}: {note}" for note, names in by_note.items()]


def _text(sweeps: Sequence[OneOf], saying: str | None) -> str:
    """For a terminal: the tables, and of every figure over sweeps its numbers."""
    parts = [f"{(head := _head(sweeps)).verdict}\n{head.about}"]
    for section in several_sections(sweeps, saying):
        grid = [] if section.grid is None else [section.grid.text()]
        parts.append("\n".join([section.title, *grid, *section.text]))
        if section.key == "figures":
            parts[-1:] = [f"{figure.title}\n{figure.numbers.text()}" for figure in section.figures]
    return "\n\n".join(parts) + "\n"


def _latex(sweeps: Sequence[OneOf], saying: str | None) -> str:
    """The tables for a paper, notes and figures' titles as comments; needs `booktabs`."""
    parts = []
    for section in several_sections(sweeps, saying):
        grid = [] if section.grid is None else [section.grid.latex()]
        parts.append("\n".join([*(f"% {line}" for line in (section.title, *section.text)), *grid]))
        if section.key == "figures":
            parts[-1:] = [f"% {figure.title}\n{figure.numbers.latex()}" for figure in section.figures]
    return "\n\n".join(parts) + "\n"
