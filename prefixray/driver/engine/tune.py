"""Ray Tune as the engine: it asks for trials, waits for their reports, and hands them over.

The coordinator decides which trials run and what becomes of them. Nothing of Tune's own state is kept or restored.
"""

import _thread
import logging
import shutil
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import OutOfMemoryError
from ray.tune.execution import class_cache
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from prefixray.cluster.connect import dead_service
from prefixray.cluster.decode_queue import DecodeJob
from prefixray.cluster.fleet import NoWorkers
from prefixray.cluster.pool import Pool
from prefixray.driver.coordinator import Coordinator
from prefixray.driver.engine.seats import OpenHouse, open_house, seated
from prefixray.driver.engine.trainable import TrialTrainable
from prefixray.driver.falls import Falls
from prefixray.driver.stage import Stage
from prefixray.errors import SweepFailed, first_line
from prefixray.reporting.live import LiveView
from prefixray.search.budget import Budget
from prefixray.search.requests import Inbox
from prefixray.search.status import View
from prefixray.system.stand_ins import environment
from prefixray.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

# Tune copies its state into the sweep's folder. Nobody reads the copy, so nobody needs to know when copying fails.
logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
# Tune copies AWS keys from the driver's environment into each trial's runtime environment, which Ray logs in clear. The
# processes of trials need none of what it copies.
class_cache.ENV_VARS_TO_PROPAGATE.clear()

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would end the run as if it were finished
}

TICK_SECONDS = 0.5  # between two ticks, and between two pictures of the live view

_GOES_ON = "the sweep goes on from here when it is started again; see its sweep.log"
_NO_MEMORY = (
    "this machine has run out of memory, and Ray has killed trials' processes: end what else runs here, or have fewer "
    "trials at once (search.concurrency)"
)


@dataclass(frozen=True)
class Engine:
    """Runs the stages of one sweep on its workers, and shows them."""

    pool: Pool
    tracker: Tracker
    inbox: Inbox
    live: LiveView
    title: str  # of the live view
    folder: Path  # the sweep's; Tune keeps files in it while a stage runs
    _ready: list[OpenHouse] = field(default_factory=list, init=False)  # for the first run

    def make_ready(self, num_seats: int) -> None:
        """Start what the first run needs, for so many trials at once, while the workers load the base."""
        self._ready.append(open_house(num_seats))

    def run(self, name: str, stages: Sequence[Stage], budget: Budget | None = None) -> None:
        """Run all trials of these stages; once `budget` is spent, no new trial starts.

        Raises `SweepFailed` where trials are left that nobody can run now.
        """
        coordinator = Coordinator(stages, self.pool, self.tracker, self.inbox, budget)
        scratch = self.folder / "tune"
        _serve(coordinator, self.live)  # a request from before may mean that there is something to run
        ended = threading.Event()
        hint = (
            f"prefixray control {self.folder.name} --help: stop, resume, add or extend trials"
            if name == "search"
            else ""
        )
        arguments = (coordinator, self.live, self.title, name, hint, ended)
        loop = threading.Thread(target=_look_after, args=arguments, daemon=True)
        loop.start()
        try:
            self._run_tune(coordinator, name, scratch)
        except BaseException as error:
            coordinator.suspend()
            if coordinator.broken is not None:
                raise SweepFailed(coordinator.broken) from error
            raise
        finally:
            ended.set()
            loop.join()
            shutil.rmtree(scratch, ignore_errors=True)
        if coordinator.lost:
            problems = [f"{', '.join(keys)}: {note}" for note, keys in coordinator.lost.items()]
            raise SweepFailed(*problems, _GOES_ON)

    def _run_tune(self, coordinator: Coordinator, name: str, scratch: Path) -> None:
        """Run Tune until no trial is left. Where it falls over, it is run again with the trials that ran.

        Raises `SweepFailed` where it falls over too often, and Tune's error where Ray has died: see `restart`.
        """
        falls = Falls()
        while True:
            try:
                house = self._ready.pop() if self._ready else None
                with environment(_ENVIRONMENT), seated(coordinator.most_at_once(), house) as place:
                    _tuner(coordinator, name, scratch, place).fit()
                return
            except Exception as error:
                if coordinator.broken is not None or dead_service() is not None:
                    raise
                cause = _first_cause(error)
                problem = f"Ray Tune has fallen over: {type(cause).__name__}: {first_line(cause)}"
                logger.info("%s", problem, exc_info=error)
                if not falls.bear():
                    too_often = f"{problem}, {Falls.rule()}"
                    raise SweepFailed(_NO_MEMORY if is_of_memory(error) else too_often, _GOES_ON) from error
                self.live.event(f"{problem}; it is run again, and its trials go on")
                coordinator.start_again()
                shutil.rmtree(scratch, ignore_errors=True)

    def decode(self, jobs: Sequence[DecodeJob]) -> list[tuple[DecodeJob, str]]:
        """Decode what is not on disk yet; the jobs that may fail and have failed, each with its problem."""
        self.live.update(self.picture("decode", f"decoding with {len(jobs)} models"))
        return self.pool.decode(jobs, lambda progress: self.live.update(self.picture("decode", progress)))

    def picture(self, stage: str, message: str) -> View:
        """A picture of what goes on while no trial runs."""
        return View(title=self.title, stage=stage, message=message)


def _tuner(coordinator: Coordinator, name: str, scratch: Path, place: Mapping[str, float]) -> tune.Tuner:
    return tune.Tuner(
        tune.with_resources(TrialTrainable, tune.PlacementGroupFactory([dict(place)])),
        tune_config=tune.TuneConfig(
            search_alg=_Proposals(coordinator),
            scheduler=_Verdicts(coordinator),
            num_samples=-1,
            max_concurrent_trials=coordinator.most_at_once(),
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(scratch.absolute()),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )


def _first_cause(error: BaseException) -> BaseException:
    """The error with which it began."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def is_of_memory(error: BaseException | None) -> bool:
    """Whether an error of Tune's comes from Ray killing processes because the machine ran out of memory."""
    while error is not None and not isinstance(error, OutOfMemoryError):
        error = error.__cause__ or error.__context__
    return error is not None


def _look_after(
    coordinator: Coordinator, live: LiveView, title: str, name: str, hint: str, ended: threading.Event
) -> None:
    """The driver's one loop: serve requests, tick, and draw, until the stages have ended; then draw once more.

    An error is logged, and the loop goes on: a cluster that does not answer now may do so again.
    """
    is_last, logged = False, ""
    while not is_last:
        is_last = ended.wait(TICK_SECONDS)
        try:
            if not is_last:
                _serve(coordinator, live)
                coordinator.tick()
            else:
                _tell(coordinator.news(), live)
            is_final = name == "search" and not coordinator.is_searching()  # only final runs are left
            view = coordinator.view(title, "final" if is_final else name)
            live.update(view if is_final else replace(view, hint=hint))
        except Exception as error:
            if coordinator.broken is not None:
                if isinstance(error, OSError | NoWorkers):  # else the main thread has met the error, and ends already
                    _interrupt()
                return
            if str(error) != logged:
                logged = str(error)
                logger.exception("the driver's loop: %s", error)


def _interrupt() -> None:
    """Interrupt the main thread by a signal that Python handles.

    A process in a shell's background may ignore SIGINT, and a program that calls `run_sweep` may not handle SIGTERM.
    """
    handled = (number for number in (signal.SIGTERM, signal.SIGINT) if callable(signal.getsignal(number)))
    _thread.interrupt_main(next(handled, signal.SIGINT))


def _serve(coordinator: Coordinator, live: LiveView) -> None:
    _tell(coordinator.serve(), live)


def _tell(news: Sequence[str], live: LiveView) -> None:
    for line in news:
        live.event(line)


class _Unsaved:
    """A part of Tune's without its coordinator when pickled: Tune saves its parts, but we never restore them."""

    _coordinator: Coordinator

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_coordinator"}


class _Proposals(_Unsaved, Searcher):
    """How Tune asks for a trial."""

    def __init__(self, coordinator: Coordinator) -> None:
        super().__init__()
        self._coordinator = coordinator

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        return self._coordinator.next()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: `_Verdicts` gets the same report."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the studies hold the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: each driver starts a new Tune run."""


class _Verdicts(_Unsaved, FIFOScheduler):
    """How Tune hands over a report, and asks whether the trial goes on."""

    def __init__(self, coordinator: Coordinator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._coordinator = coordinator

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        goes_on = self._coordinator.on_report(result["report"])
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        self._coordinator.on_report(result["report"])

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Have Tune fall over: no trial fails in its seat, so the seat has failed."""
        raise RuntimeError(f"{trial.config['spec'].key} has lost its seat") from trial.get_pickled_error()
