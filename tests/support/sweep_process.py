"""A sweep as a user has it: a folder of its own, a driver that is a process, and what both leave in their stores."""

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
    """The sweep `small` in a folder, and what can be seen of it from outside."""

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
        """What every trial of the search and the final stage says that came of it, once it has ended."""
        # no `**`: it looks into the checkpoints, which workers put away meanwhile
        return [*self.results.glob("trials/*/*/result.json"), *self.results.glob("final/*/result.json")]

    def has_checkpoints(self) -> bool:
        """Whether trials of the search are on their way."""
        return any(self.results.glob("trials/prefix/*/step-*"))

    def trials(self) -> dict[str, list[FrozenTrial]]:
        """All trials in the journal, by study."""
        storage = open_storage(self.results / "study.journal")
        summary = optuna.get_all_study_names(storage)
        studies = {name: optuna.load_study(study_name=name, storage=storage) for name in summary}
        return {
            name.removeprefix("small/"): [trial for trial in study.trials if "duplicate" not in trial.user_attrs]
            for name, study in studies.items()
        }

    def states(self) -> dict[str, Counter[str]]:
        """The states of all trials in the journal, by study; FAIL are those that failed, which are pruned to Optuna."""
        every = self.trials().items()
        return {n: Counter("FAIL" if state_of(t) == "failed" else t.state.name for t in own) for n, own in every}

    def runs(self, uri: str | None = None) -> list[Any]:
        """All runs in MLflow."""
        client = MlflowClient(tracking_uri=uri or f"sqlite:///{self.results / 'mlflow.db'}")
        return list(client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1000))


def start_driver(folder: Path, command: Sequence[str], **environment: str) -> "subprocess.Popen[str]":
    """Start a driver in a folder, offline, with the tracking that its file asks for."""
    inherited = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    offline = {"HF_HUB_OFFLINE": "1", "RAY_AUTH_MODE": "disabled"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**inherited, **offline, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]", seconds: float) -> None:
    """Wait until something holds of a driver that runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def kill(process: "subprocess.Popen[str]") -> None:
    """SIGKILL the driver alone, and wait until what it owned has gone; Ray's agents would stay for a minute."""
    left = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 60
    while not all(_title(child).endswith("Agent") for child in left):
        assert time.monotonic() < deadline, [_title(child) for child in left]
        _, left = psutil.wait_procs(left, timeout=0.2)
    for agent in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            agent.kill()


def workers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes of the driver's workers that have been set up."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if child.is_running() and "ray::Worker" in _title(child)]


def end_all() -> None:
    """End whatever a test has left running."""
    for process in psutil.Process().children(recursive=True):
        process.kill()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).rstrip()  # Ray fills its titles up
    except psutil.Error:
        return ""
