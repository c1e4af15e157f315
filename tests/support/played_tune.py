"""Tune without a sweep: a coordinator that starts so many trials at once, and a worker that plays their reports."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import ray

from prefixray.config.trials import LoraTrial, TrialConfig
from prefixray.driver.engine.seats import OpenHouse, seated
from prefixray.driver.engine.tune import _tuner
from prefixray.trial import Admission, Report, TrialSpec

NUM_STEPS = 3


@ray.remote(num_cpus=0)
class PlayedWorker:
    """Lets everyone in; holds all reports back until so many trials have asked, and the second ones until `go_on`."""

    def __init__(self, num_awaited: int) -> None:
        self._all_here, self._looked_at = threading.Barrier(num_awaited), threading.Event()
        self._steps: dict[str, int] = {}

    def join(self, spec: TrialSpec, token: str) -> Admission:
        self._all_here.wait(600)
        return Admission("joined")

    def next_report(self, key: str, token: str) -> Report:
        step = self._steps[key] = self._steps.get(key, 0) + 1
        if step > 1:
            self._looked_at.wait(600)
        loss = 1.0 / (step + int(key.partition("/")[2]))
        return Report(key, step, "done" if step == NUM_STEPS else "running", {"dev/loss": loss})

    def go_on(self) -> None:
        """Give more than a first report to each trial."""
        self._looked_at.set()


class PlayedCoordinator:
    """Starts so many trials at once, and remembers their reports."""

    def __init__(self, folder: Path, num_trials: int, on_report: Callable[[], None]) -> None:
        self._folder, self._num_trials, self._num_started = folder, num_trials, 0
        self.losses: dict[str, list[float]] = {}
        self._on_report, self._began = on_report, time.monotonic()
        self.seconds = 0.0
        """Until all trials had asked the worker to join."""

    def next(self) -> dict[str, Any] | Literal["FINISHED"] | None:
        if self._num_started == self._num_trials:
            return "FINISHED"
        number, self._num_started = self._num_started, self._num_started + 1
        config = TrialConfig(arm="lora", learning_rate=1e-3, num_steps=NUM_STEPS, method=LoraTrial(rank=1))
        spec = TrialSpec(f"lora/{number}", config, 1, 0, (), str(self._folder / str(number)))
        spec.place_on("worker-0")
        return {"spec": spec, "namespace": "played"}

    def on_report(self, report: Report) -> bool:
        if not self.losses:
            self.seconds = time.monotonic() - self._began
        self._on_report()
        losses = self.losses.setdefault(report.key, [])
        losses += [report.metrics["dev/loss"]][report.step - 1 - len(losses) :]  # Tune hands the last one over twice
        return report.state == "running"

    def most_at_once(self) -> int:
        return self._num_trials


def run_tune(
    folder: Path, num_trials: int, on_report: Callable[[], None], ready: OpenHouse | None = None
) -> PlayedCoordinator:
    """Run so many trials through Tune, all at once; `on_report` is called at each report, first while all are there."""
    options = PlayedWorker.options(name="worker-0", max_concurrency=num_trials + 8)
    worker = options.remote(num_trials)

    def reported() -> None:
        on_report()
        worker.go_on.remote()

    coordinator = PlayedCoordinator(folder, num_trials, reported)
    with seated(num_trials, ready) as place:
        _tuner(coordinator, "played", folder / "scratch", place).fit()  # type: ignore[arg-type]
    ray.kill(worker)
    return coordinator
