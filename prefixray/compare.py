"""Put finished sweeps side by side: one table, p values corrected over all comparisons, figures over data and length.

prefixray compare A B                       # names under runs/, results folders or YAML files
prefixray compare A B --out both.html       # one HTML file; .md, .csv, .tex and .txt as well
prefixray compare runs/lowdata_e2e* --paper figure3-e2e     # the paper's low-data figure, from all sizes
prefixray compare prefix_length_dart --paper figure4-dart   # its figure of lengths, from one sweep
"""

from pathlib import Path
from typing import Annotated

import typer

from prefixray.config.files.found import find_sweep
from prefixray.errors import UserError
from prefixray.reporting.paper import figure_text
from prefixray.reporting.several.forms import SUFFIXES, Form, render
from prefixray.reporting.several.side_by_side import side_by_side
from prefixray.system.atomic_files import write_whole
from prefixray.system.command_line import SWEEP_HELP, Entry, WrongArguments
from prefixray.system.exit_codes import leave


def compare(
    sweeps: Annotated[list[str], typer.Argument(metavar="SWEEP...", help=f"each {SWEEP_HELP}")],
    *,
    form: Annotated[Form | None, typer.Option("--format", help="by default that of --out, or text")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"its ending is one of {', '.join(SUFFIXES)}")
    ] = None,
    paper: Annotated[
        str | None, typer.Option(metavar="FIGURE", help="begin with what a figure of Li & Liang 2021 says")
    ] = None,
) -> None:
    """Print the comparison, or write it to a file."""
    chosen = form or ("text" if out is None else SUFFIXES.get(out.suffix))
    if chosen is None:
        raise WrongArguments(f"--out {out}: its ending says no format; take one of {', '.join(SUFFIXES)}, or --format")
    if paper is not None and chosen == "csv":
        raise WrongArguments("--paper and the format csv, which has numbers alone, exclude each other")
    saying = None if paper is None else figure_text(paper)
    rendered = render(side_by_side([find_sweep(sweep) for sweep in sweeps]), chosen, saying)
    if out is None:
        print(rendered, end="")
        return
    try:
        write_whole(out, rendered)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from error
    print(f"The comparison: {out}")


main = Entry(compare, "prefixray compare", __doc__)

if __name__ == "__main__":
    leave(main)
