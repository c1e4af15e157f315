"""Run a sweep: search, final stage, table. Run it again to continue it.

prefixray sweep sweeps/quickstart.yaml
prefixray sweep sweeps/quickstart.yaml --plan                         # what it would do and take
prefixray sweep sweeps/quickstart.yaml --set search.num_trials=16     # extends it
prefixray sweep sweeps/paper/e2e.yaml --scale laptop                  # the file's smaller version
prefixray sweep sweeps/e2e_small.yaml --address auto                  # needs a cluster: it runs here
prefixray sweep sweeps/xsum.yaml --cluster cluster.yaml               # needs a cluster: it is elsewhere
"""

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefixray.config.files.found import check_options, find_sweep_file
from prefixray.config.load import load_sweep
from prefixray.config.schema import SweepConfig
from prefixray.data import check_own_data
from prefixray.data.task_config import TaskConfig
from prefixray.system.command_line import Entry, Overrides, Prices, Scales, SweepFile, WrongArguments
from prefixray.system.exit_codes import code_of, interruptible, leave
from prefixray.system.logs import followed, quieten, to_file
from prefixray.system.machine import uncollected

if TYPE_CHECKING:
    from prefixray.driver.run import Outcome

_MLFLOW_UI = "http://127.0.0.1:5000"  # where `mlflow ui` listens
_EXAMPLE = 100  # letters of the source that the snippet for Python shows


def sweep(
    file: SweepFile,
    scales: Scales,
    overrides: Overrides,
    *,
    quiet: Annotated[bool, typer.Option("--quiet", help="print only the final table, and errors")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="show the sweep's log as well, on stderr")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="start nothing: print what the sweep would do, take and cost")
    ] = False,
    prices: Prices = None,
    address: Annotated[
        str | None, typer.Option(help="a Ray cluster to join; auto: the one that runs on this machine")
    ] = None,
    cluster: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the file of a cluster that is up: start the sweep there")
    ] = None,
) -> int:
    """Run the sweep and print its table; returns the exit code that `prefixray --help` explains."""
    if quiet and verbose:
        raise WrongArguments("--quiet and --verbose exclude each other")
    if address is not None and cluster is not None:
        raise WrongArguments("--address and --cluster exclude each other")
    file = find_sweep_file(file)
    changes = [word for name in scales for word in ("--scale", name)]
    changes += [word for override in overrides for word in ("--set", override)]
    places = {"--address": address, "--cluster": cluster}
    where = [word for name, place in places.items() if place is not None for word in (name, str(place))]
    command = ["prefixray", "sweep", str(file), *where, *changes]
    try:
        is_there = cluster is not None and not plan
        config = load_sweep(file, overrides, scales, elsewhere=is_there)  # before anything heavy
        check_options(file, config.name, overrides, scales)
        if plan or (is_there and _is_all_here(config.task)):  # here, `drive` reads every row before torch is loaded
            check_own_data(config.task)
        if plan:
            return _print_plan(config, file, prices)
        if cluster is not None:
            how_much = [f"--{name}" for name, is_given in (("quiet", quiet), ("verbose", verbose)) if is_given]
            return _run_there(config, file, cluster, [*changes, *how_much])
        outcome = _run(config, file, address, command, quiet=quiet, verbose=verbose)
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted; to go on: {shlex.join(command)}", file=sys.stderr)
        return code_of(interrupt)
    return _print_outcome(config, outcome, quiet=quiet)


def _is_all_here(task: TaskConfig) -> bool:
    """Whether no absolute path of the data leads to a file that is on the cluster alone."""
    return all(Path(path).exists() for path in task.paths.values() if Path(path).is_absolute())


def _run(
    config: SweepConfig, file: Path, address: str | None, command: Sequence[str], *, quiet: bool, verbose: bool
) -> "Outcome":
    """Run the sweep on this machine or the Ray cluster at `address`, and show its course."""
    log = Path("runs") / config.name / "sweep.log"
    quieten()
    to_file(log, terminal=None if verbose else logging.ERROR if quiet else logging.WARNING)
    with uncollected():
        from prefixray.driver.run import drive

    with ExitStack() as stack:
        stack.enter_context(interruptible())
        shown = stack.enter_context(open(os.devnull, "w", encoding="utf-8")) if quiet else sys.stdout
        if verbose:
            stack.enter_context(followed(log))
        try:
            return drive(config, file, address=address, shown=shown, command=command)
        except KeyboardInterrupt:
            print(_so_far(Path("runs") / config.name), flush=True)  # before what stderr gets
            raise


def _so_far(folder: Path) -> str:
    """The table of the search so far, also behind a final stage."""
    from prefixray.config.identity import stored_config
    from prefixray.reporting.tables import search_table
    from prefixray.search.storage import open_storage
    from prefixray.search.study import search_trials

    journal = folder / "study.journal"
    trials = search_trials(open_storage(journal), stored_config(folder)) if journal.is_file() else []
    return search_table(trials) if trials else "no trial has been started yet"


def _run_there(config: SweepConfig, file: Path, cluster: Path, options: list[str]) -> int:
    """Run the sweep on the cluster of that file, with these options of `sweep`; returns the exit code."""
    from prefixray.cluster.remote.submit import run_on_cluster

    return run_on_cluster(config, file, cluster, options, sys.stdout)


def _print_plan(config: SweepConfig, file: Path, prices: Path | None) -> int:
    quieten()
    from prefixray.planning.text import plan_text, read_prices

    print(plan_text(config, file, {} if prices is None else read_prices(prices)))
    return 0


def _print_outcome(config: SweepConfig, outcome: "Outcome", *, quiet: bool) -> int:
    """Print the final table and what to type next; returns the exit code, 1 if an arm is not in the table."""
    from prefixray.reporting.tables import render_text

    print(render_text(outcome.results))
    if not quiet:
        print(_what_next(outcome))
    in_table = {arm["arm"] for arm in outcome.results["arms"]}
    left_out = [arm.name for arm in config.arms if arm.name not in in_table]
    for name in left_out:
        print(f"arms.{name}: no run of it came to an end; {outcome.folder}/sweep.log says why", file=sys.stderr)
    return 1 if left_out else 0


def _what_next(outcome: "Outcome") -> str:
    """A text that says where the results lie and what to type next."""
    from prefixray.results.record import document_to_name, naming

    folder, tracking_uri = outcome.folder, outcome.tracking_uri
    sources = [example["source"] for example in outcome.results["examples"]]
    named = document_to_name(outcome.results)  # the first source is about it
    option, argument = naming(named)
    source = min(sources, key=len) if named is None else sources[0]  # to be pasted
    shown = source if len(source) <= _EXAMPLE else f"{source[:_EXAMPLE]}..."
    tracking = ""
    if tracking_uri is not None:
        page, is_server = outcome.runs_page or "", tracking_uri.startswith("http")
        where = f"   # then {_MLFLOW_UI}/{page}" if page else ""
        shown_here = f"mlflow ui --backend-store-uri {tracking_uri}{where}"
        tracking = f"{tracking_uri.rstrip('/')}/{page}\n" if is_server else f"{shown_here}\n"
    return f"""
{folder}: report.html .md, results.json .md .csv, final/ (artifacts, hypotheses), trials/, study.journal, sweep.log
{tracking}optuna-dashboard {folder}/study.journal   # its own package: pip install optuna-dashboard
prefixray decode {folder}{option} --split test
prefixray report {folder}

from prefixray import Tuned
tuned = Tuned.best("{folder}"{argument})
print(tuned.generate([{shown!r}]))"""


main = Entry(sweep, "prefixray sweep", __doc__)

if __name__ == "__main__":
    leave(main)
