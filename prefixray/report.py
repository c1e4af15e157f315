"""Print a sweep's tables again, and write its report: one HTML file that needs nothing else, and the same as Markdown.

python -m prefixray.report SWEEP        # a results folder, its name under runs/, or the YAML
python -m prefixray.report SWEEP --no-page
python -m prefixray.report SWEEP --paper table1    # beside the paper's numbers; --paper list: what there is
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefixray.config.load import find_sweep
from prefixray.errors import UserError
from prefixray.reporting.page import write_page
from prefixray.reporting.paper import LIST, paper_list, paper_text
from prefixray.reporting.tables import render_text, search_table
from prefixray.results.record import is_finished, load_results
from prefixray.system.exit_codes import leave


def main(argv: Sequence[str] | None = None) -> int:
    """Print the search and, once it was reached, the final stage; 2 where there is nothing to print."""
    parser = argparse.ArgumentParser(
        prog="python -m prefixray.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", nargs="?", help="a results folder, its name under runs/, or the YAML")
    parser.add_argument("--scale", action="append", default=[], metavar="NAME", help="of a YAML: the scale it ran at")
    parser.add_argument("--paper", metavar="TABLE", help="a table of Li & Liang 2021 beside ours; list: them all")
    parser.add_argument("--no-page", action="store_true", help="print only, write no report.html and report.md")
    options = parser.parse_args(argv)
    if options.paper == LIST:
        print(paper_list())
        return 0
    if options.sweep is None:
        parser.error("which sweep? a results folder, its name under runs/, or the YAML")
    try:
        folder = find_sweep(options.sweep, options.scale)
        if options.paper is not None:
            return _print_beside_paper(folder, options.paper)
        stored = load_results(folder)
        written = [] if options.no_page else write_page(stored, folder)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename or folder}: {error.strerror}; --no-page only prints", file=sys.stderr)
        return 2
    print(f"{folder}\n\n{search_table(stored['search'])}\n")
    if is_finished(stored):
        print(render_text(stored))
    else:
        print("The final stage has not been reached; the same python -m prefixray.sweep command goes on.")
    if written:
        print(f"\nThe report: {' '.join(map(str, written))}")
    return 0


def _print_beside_paper(folder: Path, name: str) -> int:
    stored = load_results(folder)
    if not is_finished(stored):
        raise UserError(f"{folder}: the final stage has not been reached; there is nothing to compare yet")
    print(paper_text(stored, name))
    return 0


if __name__ == "__main__":
    leave(main)
