"""The winners of `whole_sweep.py`'s searches, each trained anew with the same fresh seeds by the same program.

The best dev loss of a search is the lowest of as many noisy ends as it has, so a search that brings more trials to
their ends has a lower one for configurations that are no better. Here each search is judged by its configuration alone.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from processes import Watched
from sweep_arms import ENVIRONMENT, ArmFailed
from sweep_cases import sweep_file
from sweep_spec import Spec
from sweep_tables import Run, spread

from prefixray.trial import RESULT_FILE, final_name


@dataclass(frozen=True)
class Winner:
    """The configuration that a search has found, and what it comes to."""

    arm: str
    num_trials: int
    repeat: int
    config: Mapping[str, Any]
    losses: Sequence[float]  # dev losses at the end of its schedule, one for each seed


def retrained(runs: Sequence[Run], spec: Spec, folder: Path, num_seeds: int) -> list[Winner]:
    """Train the winner of each search with so many seeds; what `folder` has already is read."""
    file = folder / "winners.json"
    known = [Winner(**content) for content in json.loads(file.read_text())] if file.is_file() else []
    if [(_found(winner), len(winner.losses)) for winner in known] != [(_found(run), num_seeds) for run in runs]:
        known = _trained(runs, spec, folder, num_seeds)
        file.write_text(json.dumps([asdict(winner) for winner in known], indent=1) + "\n")
    return known


def winners_table(winners: Sequence[Winner]) -> str:
    """A line for each arm: the mean dev loss over the seeds, the median of the repeats."""
    lines = [f"{'winners trained anew':<26}{'mean dev loss':>22}{'seeds':>7}"]
    for arm in dict.fromkeys(winner.arm for winner in winners):
        own = [winner for winner in winners if winner.arm == arm]
        lines.append(f"{arm:<26}{spread([fmean(each.losses) for each in own], 3):>22}{len(own[0].losses):7}")
    return "\n".join([*lines, ""])


def _found(of: Run | Winner) -> tuple[str, int, int, Mapping[str, Any]]:
    return of.arm, of.num_trials, of.repeat, of.config


def _trained(runs: Sequence[Run], spec: Spec, folder: Path, num_seeds: int) -> list[Winner]:
    """By one sweep without a search: an arm for each winner, and a final run for each seed."""
    sweep: dict[str, Any] = yaml.safe_load(sweep_file(replace(spec, precision="auto"), "winners"))
    same = {"method": "prefix", "init_token": None}
    sweep["arms"] = {f"w{number}": {**same, **run.config} for number, run in enumerate(runs)}
    sweep["final"]["num_seeds"] = num_seeds
    folder.mkdir(exist_ok=True)
    shutil.rmtree(folder / "runs", ignore_errors=True)  # of other winners
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False), encoding="utf-8")
    with Watched([sys.executable, "-m", "prefixray.sweep", "sweep.yaml"], folder, ENVIRONMENT) as watched:
        if watched.process.wait() != 0:
            raise ArmFailed(f"the winners were not trained: see {folder}/output.txt")
    return [
        Winner(run.arm, run.num_trials, run.repeat, run.config, _losses(folder / "runs" / "winners", number, num_seeds))
        for number, run in enumerate(runs)
    ]


def _losses(results: Path, number: int, num_seeds: int) -> list[float]:
    files = [results / final_name(f"w{number}", 0, seed) / RESULT_FILE for seed in range(1, num_seeds + 1)]
    return [json.loads(file.read_text(encoding="utf-8"))["metrics"]["dev/loss"] for file in files]
