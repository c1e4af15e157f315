"""A worker's training loop: the one thread that touches the trainer, and steps the pack.

Other threads hand it jobs with `call`; it does them between two steps. After a step it may wait a moment before the
next: for the verdicts on trials at a rung, and for trials that come in place of those that ended.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import psutil

from prefixray.cluster.members import Members
from prefixray.cluster.quarantine import JOINING, Quarantine
from prefixray.errors import NoMemory, SweepFailed, UserError, disk_problem, typed_line
from prefixray.system.heartbeat import last_beat
from prefixray.system.machine import give_back
from prefixray.trial import Admission, Report, TrialSpec, WorkerStatus

if TYPE_CHECKING:  # the process of the trials' seats loads this module, too, and shall not load torch
    from prefixray.training.trainer import Trainer

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

VERDICT_SECONDS = 5.0  # how long the pack waits for the verdicts on trials at a rung, before it goes on without them
NEWCOMER_SECONDS = 0.5  # how long the pack waits for trials in place of those that ended; at most as long as a step
IDLE_SECONDS = 10.0  # without work, after which the loop gives back memory that the next step would take again
SPEED_SECONDS = 30.0  # the window over which tokens per second are counted


class _Jobs:
    """What other threads want done in the loop's thread, under the condition that the loop waits on."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._waiting: deque[tuple[Callable[[], Any], Future[Any]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, job: Callable[[], T]) -> Future[T]:
        """Have a job done; its result, once it is."""
        future: Future[T] = Future()
        with self._changed:
            self._waiting.append((job, future))
            self._changed.notify_all()
        return future

    def do(self) -> None:
        """Do all that wait; a job's error is its caller's, but for that of a device, which is raised."""
        with self._changed:
            jobs, self._waiting = self._waiting, deque()
        for job, future in jobs:
            try:
                future.set_result(job())
            except Exception as error:
                if _has_device_failed(error):
                    raise
                future.set_exception(error)


class _Vacancies:
    """The places that trials have left in the pack, and how long it waits for others to take them."""

    def __init__(self) -> None:
        self._num = 0
        self._until = 0.0  # `time.monotonic()`

    def add(self, num_places: int, step_seconds: float) -> None:
        """Trials have left; a step takes so long, and the pack waits no longer."""
        if num_places:
            self._num += num_places
            self._until = time.monotonic() + min(NEWCOMER_SECONDS, step_seconds)

    def take(self) -> None:
        """A trial has joined."""
        self._num = max(0, self._num - 1)

    def seconds_left(self) -> float:
        """How long to wait from now on; 0 where no place is left to be taken."""
        seconds = self._until - time.monotonic()
        if seconds <= 0:
            self._num = 0
        return seconds if self._num else 0.0


class _SpeedMeter:
    """Tokens per second over the last `SPEED_SECONDS`."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque()  # the `time.monotonic()` of each one's end, and its tokens

    def speed_after(self, num_tokens: int, seconds: float) -> float:
        """The speed with a step that ends now and took `seconds`."""
        now = time.monotonic()
        self._steps.append((now, num_tokens))
        while self._steps[0][0] < now - SPEED_SECONDS:
            self._steps.popleft()
        return sum(num for _, num in self._steps) / max(1e-9, now - self._steps[0][0] + seconds)


class TrainingLoop:
    """Trains the pack in a thread of its own. An error there ends the process; those who wait learn it from Ray.

    So does a job's error where the device has failed: nothing else would come of it in this process.
    """

    def __init__(self, trainer: "Trainer", quarantine: Quarantine, on_crash: Callable[[], None]) -> None:
        self._trainer, self._quarantine, self._on_crash = trainer, quarantine, on_crash
        self._changed = threading.Condition()  # guards the jobs and the members
        self._jobs = _Jobs(self._changed)
        self._members = Members(self._changed)
        self.next_report = self._members.next_report
        self._verdicts_until = 0.0  # `time.monotonic()` until which the pack waits for verdicts
        self._vacancies = _Vacancies()
        self._step_seconds = 0.0  # of the last step
        self._speed_meter = _SpeedMeter()
        self._is_retired = False
        self._busy_since: float | None = None  # `time.monotonic()`; None while the loop has nothing to do
        self._status = WorkerStatus({}, 0.0, 0, num_deaths=quarantine.num_deaths, last_death=quarantine.last_death)
        threading.Thread(target=self._run, name="loop", daemon=True).start()

    # From any thread.

    def call(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a job in the loop's thread, between two steps, and wait for its result; its errors are the caller's."""
        return self._jobs.add(partial(job, *args, **kwargs)).result()

    def status(self) -> WorkerStatus:
        """Where the trials stood after the last step, and how long the loop has been busy without a sign of life."""
        busy_since = self._busy_since
        silent = 0.0 if busy_since is None else time.monotonic() - max(busy_since, last_beat())
        return replace(self._status, seconds_silent=silent)

    # In the loop's thread: to be handed to `call`.

    def admit(self, spec: TrialSpec, token: str) -> Admission:
        """Take a trial into the pack; one that is there already joins anew, from its checkpoint.

        Raises `SweepFailed` where the disk fails.
        """
        self._forget(spec.key)
        if self._is_retired:
            return Admission("later")
        if (refusal := self._quarantine.refusal(spec.key)) is not None:
            return Admission("refused", refusal)
        if not self._quarantine.may_join(spec.key, self._trainer.keys()):
            return Admission("later")
        try:
            with _noted(spec.key, self._quarantine):
                self._trainer.admit(spec)
        except UserError as error:
            if isinstance(error, NoMemory) and self._trainer.keys():  # whose memory it may have when they have ended
                logger.info("%s: %s; it waits until others have ended", spec.key, error)
                return Admission("later")
            return Admission("refused", str(error))
        except OSError as error:
            raise SweepFailed(disk_problem(error)) from error
        self._members.join(spec.key, token)
        self._vacancies.take()
        return Admission("joined")

    def leave(self, key: str, *, has_ended: bool) -> None:
        """Drop a trial; one that is not in the pack has left already."""
        self._vacancies.add(int(key in self._trainer.steps()), self._step_seconds)
        self._forget(key)
        self._quarantine.forget(key, has_ended=has_ended)

    def stop(self, key: str) -> None:
        """End a trial with a last report; one that is not in the pack (yet) is passed over."""
        steps = self._trainer.steps()
        if key in steps:
            last = Report(key, steps[key], "stopped", self._trainer.costs(key))
            self._trainer.drop(key)
            self._vacancies.add(1, self._step_seconds)
            self._members.deliver([last])

    def hand_over(self, spec: TrialSpec, worker: str) -> bool:
        """Checkpoint a trial, place it on another worker and drop it, so that its seat joins there; whether it went.

        A trial stays that owes the report of its step, whose seat has not fetched one, whose folder is not its own, or
        of which this worker may have died.
        """
        key, step = spec.key, self._trainer.steps().get(spec.key)
        if step is None or step in spec.report_steps or self._members.has_report(key) or self._quarantine.suspects(key):
            return False
        if not self._trainer.checkpoint([key]):
            return False
        spec.place_on(worker)
        self._forget(key)
        return True

    def suspend(self) -> list[str]:
        """Checkpoint all trials and drop them; the seats that wait for their reports get None. Returns their keys.

        They may join again.
        """
        keys = self._trainer.keys()
        self._trainer.checkpoint(keys)
        for key in keys:
            self._forget(key)
        return keys

    def retire(self) -> None:
        """Suspend, and admit no trial any more: the process is about to be ended on purpose."""
        self._is_retired = True
        self.suspend()
        self._quarantine.note_retirement()

    def inherit(self, record: Path, keys: Sequence[str]) -> None:
        """Expect trials of another worker, whose deaths are in its record."""
        if self._quarantine.inherit(record, keys):
            self.suspend()

    # The loop itself.

    def _run(self) -> None:
        try:
            while True:
                self._turn()
        except BaseException as error:
            logger.exception("the loop has ended; Ray starts the worker again")
            self._quarantine.note_cause(typed_line(error))
            self._on_crash()

    def _turn(self) -> None:
        """Wait for something to do. Jobs come first, then verdicts and newcomers, then one step of the pack."""
        with self._changed:
            self._busy_since = None
            if not self._changed.wait_for(self._has_work, IDLE_SECONDS):
                give_back()
                self._changed.wait_for(self._has_work)
            self._busy_since = time.monotonic()
        self._jobs.do()
        self._await_verdicts()
        self._await_newcomers()
        if not (self._jobs or self._members.may_go_on):
            self._step_and_report()

    def _step_and_report(self) -> None:
        started, has_trials = time.monotonic(), self._can_step()
        reports = self._step()
        seconds = time.monotonic() - started
        self._step_seconds = seconds if self._trainer.last_tokens else self._step_seconds
        self._vacancies.add(sum(report.state != "running" for report in reports), self._step_seconds)
        if any(report.rung is not None for report in reports):
            self._verdicts_until = time.monotonic() + VERDICT_SECONDS
        self._members.deliver(reports)
        self._status = replace(
            self._status,
            steps=self._trainer.steps(),
            stepping=self._status.stepping + (seconds if has_trials else 0.0),  # else it is behind a job
            evaluating=self._trainer.evaluating,
            tokens_per_second=self._speed_meter.speed_after(self._trainer.last_tokens, seconds),
            memory_bytes=psutil.Process().memory_info().rss,
        )

    def _step(self) -> list[Report]:
        """One step of the pack, which the process may not survive. Who leaves without a report may join again."""
        steps, parked = self._trainer.steps(), set(self._trainer.parked())
        self._quarantine.note_running({key: step for key, step in steps.items() if key not in parked})
        for key in (key for key, step in steps.items() if step == 0):
            logger.info("%s begins its first step", key)
        try:
            reports = self._trainer.run()
            if self._quarantine.note_survival(self._trainer.steps()):
                self.suspend()
        except OSError as error:
            reports = _after_failed_write(self._trainer, error)
        self._members.forget(*(steps.keys() - self._trainer.steps().keys() - {report.key for report in reports}))
        return reports

    def _has_work(self) -> bool:
        return bool(self._jobs or self._members.may_go_on or self._can_step())

    def _can_step(self) -> bool:
        return len(self._trainer.parked()) < len(self._trainer.keys())

    def _await_verdicts(self) -> None:
        """Wait until all trials at a rung have their verdict, so that the pack does not drain; jobs come first."""
        with self._changed:
            while True:
                for key in self._members.may_go_on & set(self._trainer.parked()):
                    self._trainer.go_on(key)
                self._members.may_go_on.clear()
                seconds = self._verdicts_until - time.monotonic()
                if not self._trainer.parked() or self._jobs or seconds <= 0:
                    return
                self._changed.wait(seconds)

    def _await_newcomers(self) -> None:
        """Wait a moment for trials to take the places that others have left, so that they are in the next step."""
        seconds = self._vacancies.seconds_left()
        if seconds and self._can_step():
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._members.may_go_on, seconds)

    def _forget(self, key: str) -> None:
        self._members.forget(key)
        self._trainer.drop(key)


@contextmanager
def _noted(key: str, quarantine: Quarantine) -> Iterator[None]:
    """Note that the process may die of admitting a trial. The note stays where the device fails, which ends it."""
    quarantine.note_running({key: JOINING})
    try:
        yield
    except Exception as error:
        if not _has_device_failed(error):
            quarantine.note_running({})
        raise
    quarantine.note_running({})


def _has_device_failed(error: Exception) -> bool:
    from prefixray.training.base_checks import has_device_failed  # it loads torch, which the trainer has loaded

    return has_device_failed(error)


def _after_failed_write(trainer: "Trainer", error: OSError) -> list[Report]:
    """Drop all trials; the last reports of those that cannot go on.

    Where a folder was no longer its trial's own, two workers have written there at once: the others come again from
    their checkpoints. Else the disk has failed, and all trials are lost here.
    """
    steps = trainer.steps()
    with suppress(OSError):
        reports = trainer.give_up_lost(steps)
    if trainer.steps() == steps:
        logger.error("what a trial leaves cannot be written", exc_info=error)
        reports = [Report(key, step, "failed", note=disk_problem(error), lost=True) for key, step in steps.items()]
    for key in steps:
        trainer.drop(key)
    return reports
