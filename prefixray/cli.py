"""Prefix-tuning sweeps in which all trials share one frozen language model. Begin with `prefixray demo`, or `init`.

prefixray demo                                  # a first sweep, with nothing but the package and its base
prefixray init data.jsonl                       # a sweep file for your own data
prefixray sweep sweeps/quickstart.yaml          # the same as python -m prefixray.sweep sweeps/quickstart.yaml
prefixray sweeps/quickstart.yaml                # the same again
prefixray report quickstart
prefixray control quickstart extend --trials 8
prefixray --install-completion                  # of commands and options, in your shell
"""

import difflib
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, NoReturn, cast

import typer
from typer.core import TyperCommand, TyperGroup

from prefixray import __version__
from prefixray.errors import UserError
from prefixray.system.command_line import CONTEXT, EXIT_CODES, Entry, run, unwrapped
from prefixray.system.exit_codes import leave

COMMANDS: Mapping[str, str] = {
    "demo": "run the quickstart, with nothing but the installed package and its base",
    "init": "look at your data and write a sweep file for it",
    "examples": "list or copy the sweep files that ship with prefixray",
    "sweep": "run a sweep, or go on with it",
    "plan": "print what a sweep would do, take and cost; starts nothing",
    "report": "print a sweep's tables again",
    "compare": "put several sweeps side by side: one table, figures over data and length",
    "control": "stop or add trials, extend or finish a sweep that runs elsewhere",
    "decode": "decode a split again with what a sweep has trained",
    "serve": "answer requests in OpenAI's form with what sweeps have trained",
    "export": "write an artifact as others load it",
    "convert": "make an artifact of a checkpoint of the original",
    "train": "train one configuration, without Ray",
    "schema": "print the JSON schema of sweep files, for editors",
    "cluster check": "check a cluster's file, as for `ray up`, before anything is started",
}
"""What each command does. Its module has its name (`cluster check`: cluster_check), and there `main` is its `Entry`."""
_TITLE, _, _EXAMPLES = (__doc__ or "").partition("\n\n")


class _Commands(TyperGroup):
    """Imports the module of the command that is named, and no other: some bring Ray or torch along."""

    def list_commands(self, ctx: object) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: object, cmd_name: str) -> TyperCommand:
        """The command with no more than its line of help."""
        return TyperCommand(cmd_name, short_help=COMMANDS[cmd_name])

    def resolve_command(  # type: ignore[override]  # its own Context is private
        self, ctx: typer.Context, args: list[str]
    ) -> tuple[str | None, TyperCommand | None, list[str]]:
        """The command that the first words name, and the words behind them; a YAML file alone is a sweep.

        Raises `UserError` if there is none.
        """
        if args and args[0].endswith((".yaml", ".yml")):
            args = ["sweep", *args]
        name = next((name for name in COMMANDS if args[: len(name.split())] == name.split()), None)
        if name is not None:
            entry: Entry = importlib.import_module(f"prefixray.{name.replace(' ', '_')}").main
            return name, cast(TyperCommand, typer.main.get_command(entry.app())), args[len(name.split()) :]
        if ctx.resilient_parsing:  # completion asks as well, and takes no error
            return None, None, args
        near = difflib.get_close_matches(args[0], COMMANDS, n=2)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"the commands are {', '.join(COMMANDS)}"
        raise UserError(f"prefixray: {args[0]}: no such command ({hint})")


app = typer.Typer(cls=_Commands, rich_markup_mode=None, context_settings=CONTEXT)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"prefixray {__version__}")
        raise typer.Exit


@app.callback(
    help=_TITLE,
    epilog=unwrapped(f"{EXIT_CODES}\n\nexamples:\n{_EXAMPLES}"),
    subcommand_metavar="COMMAND ...",
)
def _prefixray(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, help="Print the version.")] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that is named; 2 where there is none of that name."""
    return run(app, "prefixray", list(sys.argv[1:] if argv is None else argv) or ["--help"])


def command() -> NoReturn:
    """What the installed `prefixray` runs."""
    if "_PREFIXRAY_COMPLETE" in os.environ:  # set by the shell's completion
        app(prog_name="prefixray")
    leave(main)


if __name__ == "__main__":
    command()
