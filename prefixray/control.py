"""Act on a sweep that runs elsewhere: in another shell, or on another machine that sees its folder.

prefixray control quickstart stop prefix/3                   # for good, whether it runs, pauses or waits
prefixray control quickstart resume prefix/3                 # a trial that pauses at a rung
prefixray control quickstart add --set preseqlen=20 mid_dim=null init_token=restaurant learning_rate=3e-2
prefixray control quickstart extend --trials 20              # 20 more, in every arm that is searched
prefixray control quickstart extend --trials 20 --arm prefix
prefixray control quickstart finish                          # stop the searches' trials, start the final stage
prefixray control quickstart finish --let-run                # start no new trial; those that have started go on

Where no driver runs, the request is kept for the next driver.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, assert_never

import typer

from prefixray.config.arms import read_configuration
from prefixray.config.files.found import find_sweep
from prefixray.config.identity import stored_config
from prefixray.config.schema import ArmConfig
from prefixray.errors import UserError
from prefixray.search.requests import Add, Extend, Finish, Inbox, Request, Resume, Stop
from prefixray.system.command_line import SWEEP_HELP, Entry, WrongArguments, repeated
from prefixray.system.exit_codes import leave
from prefixray.system.yaml_document import inline_document, suggestion

Verb = Literal["stop", "resume", "add", "extend", "finish"]
_TAKES: Mapping[Verb, set[str]] = {
    "stop": {"TRIAL"},
    "resume": {"TRIAL"},
    "add": {"--set", "--arm"},
    "extend": {"--trials", "--arm"},
    "finish": {"--let-run"},
}
_NEEDS: Mapping[Verb, str] = {"stop": "TRIAL", "resume": "TRIAL", "extend": "--trials"}

WAIT_SECONDS = 15.0


def control(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help=SWEEP_HELP)],
    verb: Annotated[Verb, typer.Argument(metavar="VERB", help="stop, resume, add, extend or finish")],
    trial: Annotated[
        str | None, typer.Argument(metavar="TRIAL", help="stop, resume: ARM/NUMBER, as the live view names it")
    ] = None,
    *,
    values: Annotated[list[str], repeated("--set", "KEY=VALUE", "add: a value of each searched key")],
    trials: Annotated[int | None, typer.Option(help="extend: by how many")] = None,
    arm: Annotated[
        str | None,
        typer.Option(help="add: which arm, if several are searched; extend: if not given, every arm that is searched"),
    ] = None,
    let_run: Annotated[bool, typer.Option("--let-run", help="finish: stop no trial that has started")] = False,
    wait: Annotated[float, typer.Option(metavar="SECONDS", help="how long to wait for the answer")] = WAIT_SECONDS,
) -> int:
    """Leave a request in the sweep's folder and print the answer; 2 if the request cannot be executed."""
    given = {"TRIAL": trial, "--set": values, "--trials": trials, "--arm": arm, "--let-run": let_run}
    surplus = [name for name, value in given.items() if value not in (None, [], False) and name not in _TAKES[verb]]
    if surplus:
        raise WrongArguments(f"{verb} takes no {surplus[0]}")
    if verb in _NEEDS and given[_NEEDS[verb]] is None:
        raise WrongArguments(f"{verb} needs {_NEEDS[verb]}")
    folder = find_sweep(sweep)
    config = stored_config(folder)
    searched = {arm.name: arm for arm in config.arms if arm.dimensions}
    if not searched:
        raise UserError(f"{config.name}: no arm has anything to search, so there is nothing to {verb}")
    request: Request
    match verb:
        case "stop":
            request = Stop(trial=_trial(verb, trial or "", searched))
        case "resume":
            request = Resume(trial=_trial(verb, trial or "", searched))
        case "add":
            chosen = _arm(arm, searched)
            document = inline_document(f"arms.{chosen.name}", values)
            request = Add(arm=chosen.name, values=read_configuration(document, chosen))
        case "extend":
            if (num_trials := trials or 0) < 1:
                raise UserError(f"--trials {num_trials}: must be a whole number above 0")
            request = Extend(num_trials=num_trials, arm=None if arm is None else _arm(arm, searched).name)
        case "finish":
            request = Finish(let_run=let_run)
        case _:
            assert_never(verb)
    return _send(request, folder, wait)


def _trial(verb: Verb, trial: str, searched: Mapping[str, ArmConfig]) -> str:
    """The trial's name, checked as far as that is possible without the driver."""
    name, _, number = trial.rpartition("/")
    if not number.isdecimal() or name not in searched:
        arms = ", ".join(searched)
        raise UserError(f"{verb} {trial}: must be ARM/NUMBER, the arm one that is searched ({arms})")
    return trial


def _arm(name: str | None, searched: Mapping[str, ArmConfig]) -> ArmConfig:
    """The arm of that name; without a name, the only one that is searched."""
    if name is None and len(searched) == 1:
        return next(iter(searched.values()))
    if name is None:
        raise UserError(f"--arm: required, because several arms are searched: {', '.join(searched)}")
    if name not in searched:
        hint = suggestion(name, searched, what="the arms that are searched are")
        raise UserError(f"--arm {name}: no such arm, or nothing is searched in it{hint}")
    return searched[name]


def _send(request: Request, folder: Path, seconds: float) -> int:
    """Leave the request and print its answer; the exit code."""
    inbox = Inbox(folder)
    request_id = inbox.post(request)
    answer = inbox.answer(request_id, seconds=seconds)
    if answer is None:
        print(f"no answer in {seconds:g} s: the request is kept in {folder}/control/{request_id}.json")
        print("and will be executed by the driver that runs the sweep, or by the next one (delete it to take it back)")
        return 0
    print(answer.text, file=sys.stdout if answer.ok else sys.stderr)
    return 0 if answer.ok else 2


main = Entry(control, "prefixray control", __doc__)

if __name__ == "__main__":
    leave(main)
