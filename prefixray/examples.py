"""List the sweep files that ship with prefixray, or copy some of them to change them.

prefixray examples                          # their names, and what each is for
prefixray examples own_data                 # copies it to sweeps/own_data.yaml
prefixray examples quickstart paper/e2e --out mine
"""

import textwrap
from pathlib import Path
from typing import Annotated

import typer

from prefixray.config.files.shipped import copy_sweeps, first_sentence, shipped_sweeps
from prefixray.errors import UserError
from prefixray.system.command_line import Entry
from prefixray.system.exit_codes import leave
from prefixray.system.yaml_document import suggestion


def examples(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME ...]", help="what to copy; nothing: list all", show_default=False),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="where to copy to")] = Path("sweeps"),
    force: Annotated[bool, typer.Option("--force", help="overwrite files that are there already")] = False,
) -> None:
    """Print the names with a sentence each, or copy the files that are named and print where they are."""
    shipped = shipped_sweeps()
    if not names:
        for name, file in shipped.items():
            print(f"{name}\n{textwrap.fill(first_sentence(file), 100, initial_indent='  ', subsequent_indent='  ')}")
        return
    unknown = [name for name in names if name not in shipped]
    if unknown:
        hints = {name: suggestion(name, shipped, what="they are") for name in unknown}
        raise UserError(*(f"prefixray examples: {name}: no such sweep file{hint}" for name, hint in hints.items()))
    for copy in copy_sweeps({name: shipped[name] for name in names}, out, overwrite=force):
        print(f"{copy}   # prefixray plan {copy}")


main = Entry(examples, "prefixray examples", __doc__)

if __name__ == "__main__":
    leave(main)
