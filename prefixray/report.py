"""Print a sweep's tables again, and write its report: one HTML file that needs nothing else, and the same as Markdown.

prefixray report SWEEP        # a results folder, its name under runs/, or the YAML
prefixray report SWEEP --no-page
prefixray report SWEEP --format latex    # the final tables as LaTeX
prefixray report SWEEP --paper table1    # beside the paper's numbers; --paper list: all of its tables
"""

from typing import Annotated, Literal

import typer

from prefixray.config.files.found import find_sweep
from prefixray.errors import UserError
from prefixray.reporting.page import write_page
from prefixray.reporting.paper import LIST, paper_list, paper_text
from prefixray.reporting.sections.result import GOES_ON
from prefixray.reporting.tables import render_latex, render_text, search_table
from prefixray.results.record import is_finished
from prefixray.system.command_line import SWEEP_HELP, Entry, Scales, WrongArguments
from prefixray.system.exit_codes import leave


def report(
    sweep: Annotated[str | None, typer.Argument(metavar="SWEEP", help=SWEEP_HELP)] = None,
    *,
    scales: Scales,
    paper: Annotated[
        str | None, typer.Option(metavar="TABLE", help="a table of Li & Liang 2021 beside ours; list: all tables")
    ] = None,
    form: Annotated[
        Literal["text", "latex"], typer.Option("--format", help="latex: the final tables alone, for a paper")
    ] = "text",
    no_page: Annotated[bool, typer.Option("--no-page", help="print only: write no report.html and report.md")] = False,
) -> None:
    """Print the search and, once it was reached, the final stage."""
    if paper == LIST:
        print(paper_list())
        return
    if paper is not None and form == "latex":
        raise WrongArguments("--paper and --format latex exclude each other")
    if sweep is None:
        raise WrongArguments(f"which sweep? {SWEEP_HELP}")
    from prefixray.reporting.notebook import record_so_far  # brings Optuna along, which --help does without

    folder = find_sweep(sweep, scales)
    try:
        stored = record_so_far(folder)
        written = [] if no_page or paper is not None or form == "latex" else write_page(stored, folder)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}; --no-page only prints") from error
    if paper is not None or form == "latex":
        if not is_finished(stored):
            raise UserError(f"{folder}: the final stage has not been reached; there is nothing to compare yet")
        print(render_latex(stored) if paper is None else paper_text(stored, paper))
        return
    print(f"{folder}\n\n{search_table(stored['search'])}\n")
    if is_finished(stored):
        print(render_text(stored))
    else:
        print(f"The final stage has not been reached. {GOES_ON}")
    if written:
        print(f"\nThe report: {' '.join(map(str, written))}")


main = Entry(report, "prefixray report", __doc__)

if __name__ == "__main__":
    leave(main)
