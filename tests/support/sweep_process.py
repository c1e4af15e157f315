"""A sweep as a user runs it: a folder, a driver in a process of its own, and what they leave in journal and MLflow."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import psutil
from mlflow import MlflowClient
from optuna.trial import FrozenTrial

from prefixray.search.storage import open_storage
from prefixray.search.trial_source import state_of

DRIVER = (sys.executable, "-m", "prefixray.sweep", "small.yaml")


class DrivenSweep:
    """The sweep `small` in a folder, seen from outside the driver's process."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.base = folder, base
        self.results = folder / "runs" / "small"

    def start(self, *options: str, command: Sequence[str] = DRIVER, **environment: str) -> "subprocess.Popen[str]":
        """Start the driver."""
        return start_driver(self.folder, [*command, *options], **environment)

    def ended(self) -> int:
        """How many trials have ended so far."""
        return len(self.result_files())

    def result_files(self) -> list[Path]:
        """The result files of all trials that have ended, in the search and in the final stage."""
        # no `**`: it would look into checkpoints, which workers remove meanwhile
        return [*self.results.glob("trials/*/*/result.json"), *self.results.glob("final/*/result.json")]

    def has_checkpoints(self) -> bool:
        """Whether a prefix trial of the search has written a checkpoint."""
        return any(self.results.glob("trials/prefix/*/step-*"))

    def trials(self) -> dict[str, list[FrozenTrial]]:
        """All trials in the journals of the search and of the final stage, by study."""
        journals = [path for path in (self.results / "study.journal", self.results / "final.journal") if path.is_file()]
        storages = [open_storage(journal) for journal in journals]
        studies = {
            name: optuna.load_study(study_name=name, storage=storage)
            for storage in storages
            for name in optuna.get_all_study_names(storage)
        }
        return {
            name.removeprefix("small/"): [trial for trial in study.trials if "duplicate" not in trial.user_attrs]
            for name, study in studies.items()
        }

    def states(self) -> dict[str, Counter[str]]:
        """How many trials are in each state, by study; those that failed, pruned ones to Optuna, count as FAIL."""
        return {
            study: Counter("FAIL" if state_of(trial) == "failed" else trial.state.name for trial in trials)
            for study, trials in self.trials().items()
        }

    def runs(self, uri: str | None = None) -> list[Any]:
        """All runs in MLflow."""
        client = MlflowClient(tracking_uri=uri or f"sqlite:///{self.results / 'mlflow.db'}")
        return list(client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1000))


def start_driver(folder: Path, command: Sequence[str], **environment: str) -> "subprocess.Popen[str]":
    """Start a driver in a folder, offline; it logs where the sweep file says."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "RAY_AUTH_MODE")}
    offline = {"HF_HUB_OFFLINE": "1"}
    equal = {"RAY_worker_niceness": "0"}  # Ray's 15 would let other tests that run meanwhile starve the workers
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**inherited, **offline, **equal, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]", seconds: float) -> None:
    """Wait until a condition holds, while the driver runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def kill(process: "subprocess.Popen[str]") -> None:
    """SIGKILL the driver alone, and wait until its children have gone; Ray's agents, which would stay, are killed."""
    alive = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 120
    while not all(_title(child).endswith("Agent") for child in alive):
        assert time.monotonic() < deadline, [_title(child) for child in alive]
        _, alive = psutil.wait_procs(alive, timeout=0.2)
    for agent in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            agent.kill()


def workers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes of the driver's workers, as far as they have started."""
    return descendants_of(process, "ray::Worker")


def descendants_of(process: "subprocess.Popen[str]", name: str) -> list[psutil.Process]:
    """The processes with such a name or title that the driver has started, or their children."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if child.is_running() and _is_named(child, name)]


def end_all() -> None:
    """Kill what a test has left running."""
    for process in psutil.Process().children(recursive=True):
        process.kill()


def _is_named(process: psutil.Process, name: str) -> bool:
    title = _title(process)
    return title.startswith(name) or title.partition(" ")[0].endswith(f"/{name}")


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).rstrip()  # Ray fills its titles up
    except psutil.Error:
        return ""
