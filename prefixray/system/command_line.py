"""Commands as Typer functions: how they parse, print help, and answer wrong arguments.

Typer's own way to run a command is not used. It turns every interrupt and every broken pipe into exit codes of its
own, and `exit_codes.leave` tells these apart.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from prefixray.errors import SweepFailed, UserError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
"""How every command parses and prints its help."""


def repeated(option: str, metavar: str, text: str) -> Any:  # noqa: ANN401  # as typer.Option
    """An option that may be given several times; `text` is its help."""
    return typer.Option(option, metavar=metavar, help=text, default_factory=list, show_default=False)


SWEEP_HELP = "a results folder, its name under runs/, or the YAML"
ARTIFACT_HELP = "an artifact's folder; or a sweep: its results folder, its name or its YAML"

ArmOfSweep = Annotated[
    str | None,
    typer.Option(help="of a sweep: the arm; if not given, the best with a prefix, or the best of all if none has one"),
]
SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP", help="the sweep's YAML file, or its name")]
Scales = Annotated[
    list[str], repeated("--scale", "NAME", "a block of the file's `scale`: laptop; results in runs/NAME-laptop")
]
Overrides = Annotated[
    list[str], repeated("--set", "KEY=VALUE", "override: train.num_steps=20; several may follow one --set")
]
Prices = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="YAML of dollars per hour by device, as in A10G: 1.5; without it, no cost"),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where torch finds a GPU")]


EXIT_CODES = """exit codes:
  0    done
  1    the sweep, an arm of its table, or the trial of train has failed
  2    there is something for you to mend: the message says what and how
  130  interrupted; the same command goes on
  141  nobody read the output to its end, as in prefixray plan ... | head
  143  terminated, by kill, systemd or Slurm; as 130"""


class SeveralSet(TyperCommand):
    """Several values may stand behind one --set."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # its own Context is private
        """Read `--set a=1 b=2` and `--set=a=1 b=2` as `--set a=1 --set b=2`; a word without `=` is no value."""
        words: list[str] = []
        option = ""
        for word in args:
            if word.startswith("-"):
                option = word.partition("=")[0]  # --set=a=1 too
            elif option == "--set" and words[-1] != "--set":
                if "=" in word:
                    words.append("--set")
                else:
                    option = ""
            words.append(word)
        return super().parse_args(ctx, words)


@dataclass(frozen=True)
class Entry:
    """The `main` of a command's module: arguments -> exit code."""

    function: Callable[..., int | None]
    """Its parameters are the command's arguments and options; it returns the exit code, and None for 0."""
    name: str
    """What a shell calls it: prefixray plan."""
    doc: str | None
    """The module's docstring; it is the help."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """The command's exit code; 2 where the arguments or the user's files are wrong."""
        return run(self.app(), self.name, argv)

    def app(self) -> typer.Typer:
        """A Typer application of this command alone."""
        app = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=CONTEXT)
        app.command(help=unwrapped(self.doc), epilog=unwrapped(EXIT_CODES), cls=SeveralSet)(self.function)
        return app


class WrongArguments(typer.BadParameter):
    """Arguments that do not go together, or one that is missing."""

    def format_message(self) -> str:
        """The message alone, without Typer's `Invalid value`."""
        return self.message


def run(app: typer.Typer, name: str, argv: Sequence[str] | None = None) -> int:
    """Parse the arguments, by default the process's own, and run the command that they name; returns the exit code."""
    command = typer.main.get_command(app)
    try:
        with command.make_context(name, list(sys.argv[1:] if argv is None else argv)) as context:
            return int(command.invoke(context) or 0)
    except typer.Exit as leaving:  # after --help
        return leaving.exit_code
    except typer.TyperException as error:
        used = getattr(error, "ctx", None)  # of the command of a group whose arguments are wrong
        message = error.format_message().replace("Value error, ", "")  # pydantic's words, by Typer 0.29 alone
        problem = " ".join(message.split()).rstrip(".")
        print(f"{used.command_path if used else name}: {problem} (--help says more)", file=sys.stderr)
        return 2
    except UserError as error:
        print(error, file=sys.stderr)
        return 1 if isinstance(error, SweepFailed) else 2


def unwrapped(text: str | None) -> str:
    r"""The text for a help page that keeps its lines: Typer wraps no paragraph that begins with \b."""
    return "\n\n".join(f"\b\n{paragraph}" for paragraph in (text or "").strip().split("\n\n"))
