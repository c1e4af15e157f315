"""Run a sweep: search, final stage, table. Run it again to continue it.

python -m prefixray.sweep sweeps/quickstart.yaml
python -m prefixray.sweep sweeps/quickstart.yaml --plan                         # what it would do and take
python -m prefixray.sweep sweeps/quickstart.yaml --set search.num_trials=16     # extends it
python -m prefixray.sweep sweeps/paper/e2e.yaml --scale laptop                  # the file's smaller version
python -m prefixray.sweep sweeps/e2e_small.yaml --address auto                  # on the Ray cluster that runs here
python -m prefixray.sweep sweeps/xsum.yaml --cluster cluster.yaml               # on a cluster, from elsewhere
"""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from prefixray.config.load import load_sweep
from prefixray.config.schema import SweepConfig
from prefixray.errors import SweepFailed, UserError
from prefixray.system.exit_codes import code_of, interruptible, leave
from prefixray.system.logs import followed, quieten, to_file

if TYPE_CHECKING:
    from prefixray.driver.run import Outcome

_EXAMPLE = 100  # letters of the source that the snippet for Python shows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep and print its table; returns the exit code that `prefixray --help` explains."""
    options = _parser().parse_args(argv)
    file = Path(options.sweep)
    try:
        config = load_sweep(file, options.set, options.scale)  # before anything heavy
        if options.plan:
            return _print_plan(config, file, options.prices)
        if options.cluster is not None:
            return _run_there(config, file, options)
        outcome = _run(config, file, options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1 if isinstance(error, SweepFailed) else 2
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted; to go on: {_command(options)}", file=sys.stderr)
        return code_of(interrupt)
    from prefixray.reporting.tables import render_text

    print(render_text(outcome.results))
    if not options.quiet:
        print(_what_next(outcome.folder, outcome.tracking_uri, outcome.results["examples"][0]["source"]))
    in_table = {arm["arm"] for arm in outcome.results["arms"]}
    left_out = [arm.name for arm in config.arms if arm.name not in in_table]
    for name in left_out:
        print(f"arms.{name}: no run of it came to an end; {outcome.folder}/sweep.log says why", file=sys.stderr)
    return 1 if left_out else 0


def _run(config: SweepConfig, file: Path, options: argparse.Namespace) -> "Outcome":
    """Run the sweep, and show of it what was asked for."""
    log = Path("runs") / config.name / "sweep.log"
    quieten()
    to_file(log, terminal=None if options.verbose else logging.ERROR if options.quiet else logging.WARNING)
    from prefixray.driver.run import run_sweep

    with ExitStack() as stack:
        stack.enter_context(interruptible())
        shown = stack.enter_context(open(os.devnull, "w")) if options.quiet else sys.stdout
        if options.verbose:
            stack.enter_context(followed(log))
        try:
            return run_sweep(config, file, address=options.address, shown=shown)
        except KeyboardInterrupt:
            print(_so_far(Path("runs") / config.name), flush=True)  # before what stderr gets
            raise


def _command(options: argparse.Namespace) -> str:
    """What goes on with the sweep, for a shell."""
    places = {"--address": options.address, "--cluster": options.cluster}
    where = [word for name, place in places.items() if place is not None for word in (name, str(place))]
    scales = [word for name in options.scale for word in ("--scale", name)]
    overrides = [word for override in options.set for word in ("--set", override)]
    return shlex.join(["python", "-m", "prefixray.sweep", options.sweep, *where, *scales, *overrides])


def _so_far(folder: Path) -> str:
    """The table of the search as it stands."""
    from prefixray.reporting.tables import search_table
    from prefixray.results.record import load_results

    try:
        return search_table(load_results(folder)["search"])
    except UserError:
        return "no trial has been started yet"


def _run_there(config: SweepConfig, file: Path, options: argparse.Namespace) -> int:
    """Run the sweep on a cluster, with the same options but that."""
    from prefixray.cluster.remote.submit import run_on_cluster

    handed_on = [f"--set={value}" for value in options.set] + [f"--scale={name}" for name in options.scale]
    handed_on += [f"--{name}" for name in ("quiet", "verbose") if getattr(options, name)]
    return run_on_cluster(config, file, options.cluster, handed_on, sys.stdout)


def _print_plan(config: SweepConfig, file: Path, prices: Path | None) -> int:
    quieten()
    from prefixray.planning.text import plan_text, read_prices

    print(plan_text(config, file, {} if prices is None else read_prices(prices)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m prefixray.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", help="the sweep's YAML file")
    parser.add_argument(
        "--scale",
        action="append",
        default=[],
        metavar="NAME",
        help="a scale of the file: laptop; results in runs/...-laptop",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override: arms.prefix.preseqlen=20"
    )
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument("--quiet", action="store_true", help="print only the final table, and errors")
    how_much.add_argument("--verbose", action="store_true", help="show the sweep's log as well, on stderr")
    parser.add_argument("--plan", action="store_true", help="start nothing: print what it would do, take and cost")
    parser.add_argument("--prices", type=Path, help="with --plan: YAML of dollars per hour by device, as in A10G: 1.5")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--address", help="a Ray cluster to join; auto: the one that runs on this machine")
    where.add_argument("--cluster", type=Path, metavar="FILE", help="the file of a cluster that is up: start it there")
    return parser


def _what_next(folder: Path, tracking_uri: str | None, source: str) -> str:
    """Where everything is, and what to type next."""
    shown = source if len(source) <= _EXAMPLE else f"{source[:_EXAMPLE]}..."
    tracking = ""
    if tracking_uri is not None:
        is_server = tracking_uri.startswith("http")
        tracking = f"{tracking_uri}\n" if is_server else f"mlflow ui --backend-store-uri {tracking_uri}\n"
    return f"""
{folder}: report.html .md, results.json .md .csv, final/ (artifacts, hypotheses), trials/, study.journal, sweep.log
{tracking}optuna-dashboard {folder}/study.journal
python -m prefixray.decode {folder} --split test
python -m prefixray.report {folder}

from prefixray import Tuned
tuned = Tuned.best("{folder}")
print(tuned.generate([{shown!r}]))"""


if __name__ == "__main__":
    leave(main)
