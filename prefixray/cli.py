"""The `prefixray` command: one name for all commands, each of which is a module as well.

prefixray sweep sweeps/quickstart.yaml          # the same as python -m prefixray.sweep sweeps/quickstart.yaml
prefixray report quickstart
prefixray control quickstart extend --trials 8
"""

import difflib
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from prefixray.system.exit_codes import leave

COMMANDS: Mapping[str, str] = {
    "sweep": "run a sweep, or go on with it",
    "plan": "print what a sweep would do, take and cost; starts nothing",
    "report": "print a sweep's tables again",
    "control": "stop or add trials, extend or finish a sweep that runs elsewhere",
    "decode": "decode a split again with what a sweep has trained",
    "export": "write an artifact as others load it",
    "convert": "make an artifact of a checkpoint of the original",
    "train": "train one configuration, without Ray",
    "cluster check": "check a cluster's file, as for `ray up`, before anything is started",
}
"""What each command does. Its module has its name (`cluster check`: cluster_check); `main` there takes the arguments
behind the name and returns the exit code."""
_EXIT_CODES = """exit codes:
  0    done
  1    the sweep, an arm of its table, or the trial of train has failed
  2    there is something for you to mend: the message says what and how
  130  interrupted; the same command goes on
  141  nobody read the output to its end, as in prefixray plan ... | head
  143  terminated, by kill, systemd or Slurm; as 130"""


def main(argv: Sequence[str] | None = None) -> int:
    """Hand over to the command that is named; 2 where there is none of that name."""
    given = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if given[0] in ("-h", "--help"):
        print(_help())
        return 0
    name = next((name for name in COMMANDS if given[: len(name.split())] == name.split()), None)
    if name is None:
        print(_unknown(given[0]), file=sys.stderr)
        return 2
    module = importlib.import_module(f"prefixray.{name.replace(' ', '_')}")  # no other: some bring Ray or torch along
    code: int = module.main(given[len(name.split()) :])
    return code


def command() -> NoReturn:
    """What the installed `prefixray` runs."""
    leave(main)


def _help() -> str:
    examples = (__doc__ or "").partition("\n\n")[2].rstrip()
    commands = "\n".join(f"  {name:<13} {what}" for name, what in COMMANDS.items())
    usage = "usage: prefixray COMMAND ...   (prefixray COMMAND --help says more)"
    return f"{usage}\n\ncommands:\n{commands}\n\n{_EXIT_CODES}\n\nexamples:\n{examples}"


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=2)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"the commands are {', '.join(COMMANDS)}"
    return f"prefixray: {name}: no such command ({hint})"


if __name__ == "__main__":
    command()
