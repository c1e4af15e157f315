"""Act on a sweep that runs elsewhere: in another shell, or on another machine that sees its folder.

python -m prefixray.control quickstart stop prefix/3                   # as a rung would
python -m prefixray.control quickstart add --set preseqlen=20 mid_dim=null init_token=restaurant learning_rate=3e-3
python -m prefixray.control quickstart extend --trials 20              # so many more, in every arm that is searched
python -m prefixray.control quickstart extend --trials 20 --arm prefix
python -m prefixray.control quickstart finish                          # end the search, start the final stage

Where no driver runs, the request is kept for the next one.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import assert_never

from prefixray.config.arms import read_configuration
from prefixray.config.identity import stored_config
from prefixray.config.load import find_sweep
from prefixray.config.schema import ArmConfig, SweepConfig
from prefixray.errors import UserError
from prefixray.search.requests import Add, Extend, Finish, Inbox, Request, Stop
from prefixray.system.exit_codes import leave
from prefixray.system.yaml_document import inline_document, suggestion

WAIT_SECONDS = 15.0


def main(argv: Sequence[str] | None = None) -> int:
    """Leave a request in the sweep's folder and print what came of it; 2 where it cannot be executed."""
    options = _parser().parse_args(argv)
    try:
        folder = find_sweep(options.sweep)
        request = _request(options, stored_config(folder))
        inbox = Inbox(folder)
        request_id = inbox.post(request)
        answer = inbox.answer(request_id, seconds=options.wait)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if answer is None:
        print(f"no answer in {options.wait:g} s: the request is kept in {folder}/control/{request_id}.json")
        print("and will be executed by the driver that runs the sweep, or by the next one (delete it to take it back)")
        return 0
    print(answer.text, file=sys.stdout if answer.ok else sys.stderr)
    return 0 if answer.ok else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m prefixray.control", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", help="a results folder, its name under runs/, or the YAML")
    parser.add_argument(
        "--wait", type=float, default=WAIT_SECONDS, metavar="SECONDS", help=f"for the answer ({WAIT_SECONDS:g})"
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", help="stop, add, extend or finish")
    stop = verbs.add_parser("stop", help="stop a trial, as a rung would")
    stop.add_argument("trial", help="ARM/NUMBER, as the live view names it")
    add = verbs.add_parser("add", help="try a configuration next; it counts as one trial more")
    add.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="a value of each searched key"
    )
    extend = verbs.add_parser("extend", help="raise the number of trials")
    extend.add_argument("--trials", type=int, required=True, help="by how many")
    for verb, which in ((add, "the one that is searched"), (extend, "every arm that is searched")):
        verb.add_argument("--arm", help=f"which arm ({which})")
    verbs.add_parser("finish", help="end the search with what there is, and start the final stage")
    return parser


def _request(options: argparse.Namespace, config: SweepConfig) -> Request:
    """The request, as far as it can be checked without the driver."""
    searched = {arm.name: arm for arm in config.arms if arm.dimensions}
    if not searched:
        raise UserError(f"{config.name}: no arm has anything to search, so there is nothing to {options.verb}")
    match options.verb:
        case "stop":
            name, _, number = options.trial.rpartition("/")
            if not number.isdecimal() or name not in searched:
                arms = ", ".join(searched)
                raise UserError(f"stop {options.trial}: must be ARM/NUMBER, the arm one that is searched ({arms})")
            return Stop(trial=options.trial)
        case "add":
            arm = _arm(options.arm, searched)
            given = inline_document(f"arms.{arm.name}", options.set)
            return Add(arm=arm.name, values=read_configuration(given, arm))
        case "extend":
            if options.trials < 1:
                raise UserError(f"--trials {options.trials}: must be a whole number above 0")
            name = None if options.arm is None else _arm(options.arm, searched).name
            return Extend(num_trials=options.trials, arm=name)
        case "finish":
            return Finish()
        case _:
            assert_never(options.verb)


def _arm(name: str | None, searched: dict[str, ArmConfig]) -> ArmConfig:
    """The arm that is meant; without a name, the only one."""
    if name is None and len(searched) == 1:
        return next(iter(searched.values()))
    if name is None:
        raise UserError(f"--arm: required, because several arms are searched: {', '.join(searched)}")
    if name not in searched:
        hint = suggestion(name, searched, what="the arms that are searched are")
        raise UserError(f"--arm {name}: no such arm, or nothing is searched in it{hint}")
    return searched[name]


if __name__ == "__main__":
    leave(main)
