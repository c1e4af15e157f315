"""The arms of `whole_sweep.py`: how each is run, what came of it, and about how long it takes."""

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from processes import Watched
from sweep_cases import AT_ONCE_OF_PEFT, Case, own_rules, sweep_file
from sweep_log import logged
from sweep_spec import Spec, TrialTimes
from sweep_tables import Run

from prefixray.config.load import load_sweep
from prefixray.planning.slots import default_at_once
from prefixray.results.timeline.keeper import LOOK_SECONDS
from prefixray.results.timeline.read import read_timeline
from prefixray.search.sampling.parameters import values_by_key
from prefixray.search.storage import open_storage
from prefixray.search.trial_source import started_trials, state_of

GIVES_UP_SECONDS = 3600.0  # after which an arm is ended
START_SECONDS = 15.0  # of any arm, for the estimate
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "RAY_raylet_start_wait_time_s": "120",  # other work on the machine may hold Ray up
    "TOKENIZERS_PARALLELISM": "true",
}


class ArmFailed(Exception):
    """It printed what is told here."""


@dataclass(frozen=True)
class Arm:
    """How a search is run.

    Its seconds are for the estimate alone. They are those of two cores, from the older table in
    docs/measurements/whole_sweep.md, where an evaluated row counts as half of a trained one.
    """

    run: Callable[[Run, Spec, Path, Mapping[str, Any]], None]
    settings: Mapping[str, Any]  # changes of the spec
    row_seconds: float  # on the clock, for each row that any trial is trained on
    trial_seconds: float = 0.0  # on the clock, for each trial's start
    has_our_rung: bool = False  # ASHA's first rung lies where our default has its own

    @property
    def is_peft(self) -> bool:
        """Whether it is the search by hand."""
        return self.run is run_peft

    def at_once(self, num_trials: int) -> int:
        """How many trials it has at once; ours by itself."""
        return AT_ONCE_OF_PEFT if self.is_peft else default_at_once(num_trials)

    def spec(self, spec: Spec) -> Spec:
        """The spec with what is different in this arm."""
        own = replace(spec, **self.settings)
        return replace(own, first_rung=own_rules(spec).rungs[0]) if self.has_our_rung else own

    def estimate(self, spec: Spec, num_dev: int) -> float:
        """Seconds of a search in which a fifth more trials go on at a rung than they should, since none waits there."""
        if self.is_peft:
            rungs, keep = self.spec(spec).rungs, 0.5
        else:
            rules = own_rules(spec)
            rungs, keep = rules.rungs, rules.keep
        ends = (*rungs, spec.num_steps)
        passing = [spec.num_trials * keep**number for number in range(len(ends))]
        steps = sum(num * (end - begin) for num, begin, end in zip(passing, (0, *ends), ends, strict=False))
        rows = 1.2 * (steps * spec.batch_size + sum(passing) * num_dev / 2)
        return START_SECONDS + spec.num_trials * self.trial_seconds + rows * self.row_seconds


def measured(name: str, run: Run, case: Case, spec: Spec, out: Path) -> None:
    """Run an arm in a new folder; `run` says which, and gets what came of it."""
    arm = ARMS[name]
    seed = spec.seed + run.repeat  # else every repeat would draw the same first configurations
    own, search = replace(arm.spec(spec), num_trials=run.num_trials, seed=seed), dict[str, Any]()
    if arm.is_peft:
        own = replace(own, at_once=run.at_once)
    if run.part == "memory":
        num_steps = case.steps_of_peft if arm.is_peft else case.steps_of_ours
        own = replace(own, num_trials=run.at_once, num_steps=num_steps, first_rung=None, warmup_steps=1)
        search = {"concurrency": run.at_once, "rungs": []}
    prefix = f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{run.part}-{run.num_trials}-{run.at_once}-"
    arm.run(run, own, Path(tempfile.mkdtemp(prefix=prefix, dir=out)), search)
    run.note_trials(own.num_steps)


def run_peft(run: Run, spec: Spec, folder: Path, search: Mapping[str, Any]) -> None:
    """Run `peft_sweep.py` to its end."""
    spec.save(folder / "spec.json")
    command = [sys.executable, str(Path(__file__).with_name("peft_sweep.py")), "spec.json"]
    with _started(run, command, folder) as watched:
        _wait(watched, lambda: watched.process.poll() is not None)
        _note_use(run, watched)
    file = folder / "trials.json"
    if not file.is_file():
        raise ArmFailed(f"it has failed:\n{_tail(folder)}")
    run.trials = [TrialTimes(**content) for content in json.loads(file.read_text())]


def run_ours(run: Run, spec: Spec, folder: Path, search: Mapping[str, Any]) -> None:
    """Run our sweep until its last trial has ended."""
    (folder / "sweep.yaml").write_text(sweep_file(spec, "search", **search), encoding="utf-8")
    results = folder / "runs" / "search"

    with _started(run, [sys.executable, "-m", "prefixray.sweep", "sweep.yaml"], folder) as watched:

        def is_over() -> bool:
            ended = len(list((results / "trials" / "prefix").glob("*/result.json")))
            return ended >= spec.num_trials or watched.process.poll() is not None

        _wait(watched, is_over)
        if watched.process.poll() is not None:
            raise ArmFailed(f"it has ended by itself:\n{_tail(folder)}")
        _note_use(run, watched)
        time.sleep(2 * LOOK_SECONDS)  # for the timeline's last line
        timeline = read_timeline(results)
        watched.interrupt()
    run.idle_share = timeline.idle_share if timeline else None
    _read_ours(run, results)


ARMS: Mapping[str, Arm] = {
    "PEFT fp32": Arm(run_peft, {"precision": "fp32"}, 0.25, 3.7),
    "PEFT bf16": Arm(run_peft, {"precision": "bf16"}, 0.17, 4.4),
    "PEFT fp32, our rung": Arm(run_peft, {"precision": "fp32"}, 0.25, 3.7, has_our_rung=True),
    "PEFT bf16, our rung": Arm(run_peft, {"precision": "bf16"}, 0.17, 4.4, has_our_rung=True),
    "PEFT fp32, actors reused": Arm(run_peft, {"precision": "fp32", "reuses_actors": True}, 0.25, 3.7),
    "PEFT bf16, actors reused": Arm(run_peft, {"precision": "bf16", "reuses_actors": True}, 0.17, 4.4),
    "prefixray fp32": Arm(run_ours, {"precision": "fp32"}, 0.19),
    "prefixray": Arm(run_ours, {"precision": "auto"}, 0.08),
}


def _started(run: Run, command: list[str], folder: Path) -> Watched:
    run.started = time.time()
    return Watched(command, folder, ENVIRONMENT)


def _wait(watched: Watched, is_over: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GIVES_UP_SECONDS
    while not is_over():
        if time.monotonic() > deadline:
            raise ArmFailed(f"not done after {GIVES_UP_SECONDS:.0f} s")
        time.sleep(0.2)


def _note_use(run: Run, watched: Watched) -> None:
    run.cpu_seconds = watched.cpu_seconds
    run.peak_bytes, run.num_processes = watched.peak_bytes, watched.num_processes


def _read_ours(run: Run, results: Path) -> None:
    """What the study and the log say."""
    import optuna
    from optuna.trial import TrialState

    (arm,) = load_sweep(results / "sweep.yaml").arms
    study = optuna.load_study(study_name="search/prefix", storage=open_storage(results / "study.journal"))
    log = results / "sweep.log"
    asked, begun = logged(log, "asks to join"), logged(log, "begins its first step")
    for trial in started_trials(study):
        assert trial.datetime_start is not None, "it was started"
        key, proposed = f"prefix/{trial.number}", trial.datetime_start.timestamp()
        ended = trial.datetime_complete
        curve = dict(sorted(trial.intermediate_values.items()))  # before the last rung over a sample of dev
        if trial.state is TrialState.COMPLETE:
            curve[max(curve)] = trial.value
        run.trials.append(
            TrialTimes(
                proposed=proposed,
                first_step=begun.get(key),
                ended=ended.timestamp() if ended else (results / "trials" / key / "result.json").stat().st_mtime,
                steps=max(curve, default=0),
                losses=list(curve.values()),
                state="failed" if state_of(trial) == "failed" else "ended",
                config=values_by_key(arm, trial.params),
            )
        )
        if key in asked:
            run.joined.append(asked[key] - proposed)


def _tail(folder: Path) -> str:
    return "\n".join((folder / "output.txt").read_text(errors="replace").splitlines()[-30:])
