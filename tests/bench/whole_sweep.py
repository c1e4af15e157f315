"""A whole sweep, from its command to its last trial, against PEFT, Ray Tune, Optuna and MLflow put together by hand.

    python tests/bench/whole_sweep.py                          # SmolLM2-135M on E2E, 16 trials; it says how long first
    python tests/bench/whole_sweep.py --trials 16 32 --repeats 3 --out FOLDER
    python tests/bench/whole_sweep.py --case tiny --trials 4   # whether everything runs
    python tests/bench/whole_sweep.py --arms "PEFT fp32" prefixray --parts sweep

Each arm searches with the same files of rows, base, space, schedule and number of trials (`sweep_cases.py`); what each
does of it stands beside its time: trials that went to the end, steps of all, the best dev loss of those at the end. The
arms of PEFT are `peft_sweep.py`, with the first rung at a fifth of the schedule or where our default has it; ours is
`python -m prefixray.sweep` with our own policy and rungs, interrupted when its last trial has ended, since a sweep of
ours goes on with a final stage and a table. The part `memory` trains as many trials at once as it says, for a few
steps, for its peak memory. Repeats are in turn: every arm once, then every arm again. What is known is written to
results.json after every run, and the same command with the same --out goes on behind it. With --seeds each search's
winner is trained anew by prefixray, with fresh seeds, since the best dev loss of a search is the luckiest of its ends.
"""

import argparse
import itertools
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

from sweep_arms import ARMS, ArmFailed, measured
from sweep_cases import CASES, Case, own_rules, prepare
from sweep_spec import Spec
from sweep_tables import GIB, Run, memory_table, outcome_table, time_table, wait_table
from sweep_winners import retrained, winners_table

from prefixray.system.logs import quieten

DEFAULT_ARMS = {
    "sweep": (
        "PEFT fp32",
        "PEFT bf16",
        "PEFT fp32, our rung",
        "PEFT bf16, our rung",
        "prefixray fp32",
        "prefixray",
    ),
    "memory": ("PEFT fp32", "PEFT bf16", "prefixray"),
}


def main() -> None:
    """Run the arms in turn and print the tables."""
    options = _options()
    quieten()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs shall not outlive this
    out = (options.out or Path(tempfile.mkdtemp(prefix="whole-sweep-"))).absolute()
    out.mkdir(parents=True, exist_ok=True)
    case = CASES[options.case]
    spec = prepare(case, out)
    known = read_known(out, spec)
    runs = list(planned(options, case))
    print(f"{options.case}: {case.num_steps} steps a trial; of ours {own_rules(spec)}; all in {out}")
    print(estimate_table(options, spec, case.num_dev), flush=True)
    for run in runs:
        if any(run.is_same(other) for other in known):
            continue
        try:
            measured(run.arm, run, case, spec, out)
        except ArmFailed as error:
            print(f"{run.arm}, {run.part}, {run.at_once} at once: {error}", flush=True)
            continue
        known.append(run)
        (out / "results.json").write_text(json.dumps([asdict(run) for run in known], indent=1) + "\n")
        _say(run)
    for num_trials in options.trials or [case.num_trials] if "sweep" in options.parts else ():
        print(f"\n{num_trials} trials: the median of the repeats, in brackets the lowest and the highest\n")
        sweeps = [run for run in known if run.part == "sweep" and run.num_trials == num_trials]
        print("\n".join([time_table(sweeps), outcome_table(sweeps), wait_table(sweeps)]))
        if options.seeds:
            found = [run for run in sweeps if run.config]
            print(winners_table(retrained(found, spec, out / f"winners-{num_trials}", options.seeds)))
    if "memory" in options.parts:
        print(memory_table([run for run in known if run.part == "memory"]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="SmolLM2-135M, E2E")
    parser.add_argument("--arms", nargs="+", choices=ARMS, metavar="ARM", help="; ".join(ARMS))
    parser.add_argument("--trials", type=int, nargs="+", help="of each search (each case has its own number)")
    parser.add_argument("--seeds", type=int, help="fresh ones with which each search's winner is trained anew")
    parser.add_argument("--repeats", type=int, default=1, help="of the part sweep")
    parser.add_argument("--parts", nargs="+", choices=DEFAULT_ARMS, default=list(DEFAULT_ARMS))
    parser.add_argument("--out", type=Path, help="the folder for everything (a temporary one)")
    return parser.parse_args()


def planned(options: argparse.Namespace, case: Case) -> Iterator[Run]:
    """The runs in their order."""
    if "sweep" in options.parts:
        arms = options.arms or DEFAULT_ARMS["sweep"]
        for repeat, num_trials, arm in itertools.product(
            range(options.repeats), options.trials or [case.num_trials], arms
        ):
            yield Run(arm, "sweep", ARMS[arm].at_once(num_trials), num_trials, repeat)
    if "memory" in options.parts:
        for arm in options.arms or DEFAULT_ARMS["memory"]:
            for at_once in case.at_once_of_peft if ARMS[arm].is_peft else case.at_once_of_ours:
                yield Run(arm, "memory", at_once, at_once)


def read_known(out: Path, spec: Spec) -> list[Run]:
    """The runs that an earlier command has left; it must have searched the same."""
    file = out / "spec.json"
    if file.is_file() and Spec.load(file) != spec:
        sys.exit(f"{out} holds runs of another case: take another --out")
    spec.save(file)
    results = out / "results.json"
    return [Run.load(content) for content in json.loads(results.read_text())] if results.is_file() else []


def estimate_table(options: argparse.Namespace, spec: Spec, num_dev: int) -> str:
    """What the part `sweep` takes on two cores of the machine of docs/measurements/whole_sweep.md."""
    if "sweep" not in options.parts:
        return ""
    arms, trials = options.arms or DEFAULT_ARMS["sweep"], options.trials or [spec.num_trials]
    lines = [f"{'expected on 2 cores, s':<26}" + "".join(f"{f'{num} trials':>12}" for num in trials)]
    total = 0.0
    for arm in arms:
        seconds = [ARMS[arm].estimate(replace(spec, num_trials=num), num_dev) for num in trials]
        total += options.repeats * sum(seconds)
        lines.append(f"{arm:<26}" + "".join(f"{value:12.0f}" for value in seconds))
    return "\n".join([*lines, f"in all, with --repeats {options.repeats}: {total / 60:.0f} min", ""])


def _say(run: Run) -> None:
    losses = " ".join(f"{loss:.3f}" for loss in run.curve)
    print(
        f"{datetime.now():%H:%M:%S}  {run.arm}, {run.part}: {len(run.trials)} trials in {run.wall:.1f} s, "
        f"peak {run.peak_bytes / GIB:.2f} GiB in {run.num_processes} processes, the best one's dev losses {losses}",
        flush=True,
    )


if __name__ == "__main__":
    main()
