"""The worker: owns one device, one base, one pack, and runs the training loop in a thread of its own.

Trials call in from other processes: `join`, then `next_report` until the trial ends, and each call may block.
Everything that touches the trainer runs in the loop's thread, between two steps. Membership is a trial's key and a
token, so that the call of a stale process is recognised and ignored. A worker that is started in place of a dead one
reads from its record who may join (`triage.py`).
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import psutil

from prefixray.cluster.quarantine import JOINING, Triage
from prefixray.config.schema import ArmConfig
from prefixray.config.trials import TrainConfig
from prefixray.data.task_config import TaskConfig
from prefixray.errors import SweepFailed, UserError, disk_problem, first_line
from prefixray.results.hypotheses import Split
from prefixray.system.heartbeat import last_beat
from prefixray.system.logs import quieten, to_file
from prefixray.system.machine import give_back
from prefixray.training.facts import WorkerFacts
from prefixray.trial import Admission, Report, TrialSpec, WorkerStatus

# torch, transformers and all that needs them are imported where a worker is made: the driver only names the class.

logger = logging.getLogger(__name__)

T = TypeVar("T")

VERDICT_SECONDS = 5.0  # how long the pack waits for the verdicts on trials that reached a rung, then goes on without
NEWCOMER_SECONDS = 0.5  # how long the pack waits for who comes in a trial's place, and no longer than a step takes
IDLE_SECONDS = 10.0  # without work after which memory is given back that the next step would take again
SPEED_SECONDS = 30.0  # tokens per second are counted over this window


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker is made from."""

    base: str
    task: TaskConfig
    train: TrainConfig
    device: str  # "cpu" or "cuda"
    num_threads: int
    max_new_tokens: int = 0  # that the final stage decodes
    log: str | None = None  # the file that it writes to what it has to say
    trust_remote_code: bool = False  # see `SweepConfig`
    record: str | None = None  # the file by which the next worker in its place learns what it died of
    max_failures: int = 3  # the sweep's


@dataclass
class _Membership:
    """A trial as its caller sees it."""

    token: str
    reports: deque[Report] = field(default_factory=deque)
    verdict_due: bool = False  # the caller has the report of a rung and has not come back yet


class Worker:
    """One base, one pack, one loop. An error in the loop ends the process: whoever waits learns it from Ray."""

    def __init__(self, setup: WorkerSetup, *, on_crash: Callable[[], None] = lambda: os._exit(1)) -> None:
        quieten()
        if setup.log is not None:
            to_file(Path(setup.log), terminal=None)
        self._refusal: UserError | None = None
        try:
            from prefixray.training.trainer import load_trainer  # a broken CUDA is met here

            self._trainer = load_trainer(
                setup.base,
                setup.task,
                setup.train,
                device=setup.device,
                num_threads=setup.num_threads,
                max_new_tokens=setup.max_new_tokens,
                trust_remote_code=setup.trust_remote_code,
            )
        except UserError as error:
            self._refusal = error  # raised here, it would come to the user as a dead actor
            return
        except Exception as error:
            logger.exception("the base and the data could not be loaded")
            self._refusal = SweepFailed(f"{type(error).__name__}: {first_line(error)}")
            return
        self._members: dict[str, _Membership] = {}
        self._released: set[str] = set()  # parked trials that may go on
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._on_crash = on_crash
        self._patience_ends = 0.0  # `time.monotonic()` until which the pack waits for verdicts
        self._num_vacant = 0  # places that trials have left and nobody has taken yet
        self._vacant_until = 0.0  # `time.monotonic()` until which the pack waits for somebody
        self._step_seconds = 0.0  # of the last step
        self._speed: deque[tuple[float, int]] = deque()
        self._is_retired = False
        self._triage = Triage(None if setup.record is None else Path(setup.record), setup.max_failures)
        self._busy_since: float | None = None  # `time.monotonic()`; None while the loop waits for something to do
        self._status = WorkerStatus(
            steps={},
            tokens_per_second=0.0,
            memory_bytes=0,
            num_deaths=self._triage.num_deaths,
            last_death=self._triage.last_death,
        )
        threading.Thread(target=self._run, name="loop", daemon=True).start()

    def ready(self) -> WorkerFacts:
        """What the worker found out about its base and device, or the `UserError` that kept it from loading them."""
        if self._refusal is not None:
            raise self._refusal
        return self._trainer.describe()

    def check(self, arms: Sequence[ArmConfig]) -> None:
        """Refuse arms of which some trial cannot be built on this base: `UserError` with all that is wrong."""
        self._call(lambda: self._trainer.check(arms))

    def join(self, spec: TrialSpec, token: str) -> Admission:
        """Let a trial join the pack.

        A trial that is a member under another token joins anew, from its checkpoint. Raises `UserError` where it could
        join if something outside were mended. A worker that cannot load the base has it wait for a place elsewhere.
        """
        if self._refusal is not None:
            return Admission("later")
        logger.info("%s asks to join", spec.key)
        return self._call(lambda: self._admit(spec, token))

    def next_report(self, key: str, token: str) -> Report | None:
        """The trial's next report, when there is one; coming back after the report of a rung means to go on.

        None: the worker does not know this membership (any more).
        """
        with self._changed:
            while True:
                member = self._members.get(key)
                if member is None or member.token != token:
                    return None
                if member.verdict_due:
                    member.verdict_due = False
                    self._released.add(key)
                    self._changed.notify_all()
                if member.reports:
                    report = member.reports.popleft()
                    member.verdict_due = report.rung is not None
                    if report.state != "running":
                        del self._members[key]
                    return report
                self._changed.wait()

    def leave(self, key: str) -> None:
        """Let a trial go; one that is not there is gone already."""

        def go() -> None:
            self._vacate(int(key in self._trainer.steps()))
            self._forget(key)
            self._triage.ends(key)

        self._call(go)

    def stop(self, key: str) -> None:
        """End a trial: its caller gets a last report. One that is not in the pack (yet) is passed over."""

        def end() -> None:
            if key in (steps := self._trainer.steps()):
                last = Report(key, steps[key], "stopped", self._trainer.costs(key))
                self._trainer.drop(key)
                self._vacate(1)
                with self._changed:
                    self._members[key].reports.append(last)
                    self._changed.notify_all()

        self._call(end)

    def suspend(self) -> list[str]:
        """Checkpoint all trials and let them go; those who wait for a report get None."""
        return self._call(self._let_go)

    def retire(self) -> None:
        """As `suspend`, and take no trial any more: the process is ended on purpose, and nobody is to blame."""

        def go() -> None:
            self._is_retired = True
            self._let_go()
            self._triage.retires()

        self._call(go)

    def inherit(self, record: str, keys: Sequence[str]) -> None:
        """Expect these trials, whose worker is gone; what it died of is in its record."""

        def expect() -> None:
            if self._triage.inherits(Path(record), keys):
                self._let_go()

        self._call(expect)

    def decode(self, artifact: str | None, folder: str, split: Split, settings: Mapping[str, Any]) -> None:
        """Decode a split with an artifact, or with the untuned base, into `folder`.

        Runs between two steps of the pack; nothing is done again that `folder` holds already.
        """
        from prefixray.decoding.evaluate import decode_for_sweep

        made_by = None if artifact is None else Path(artifact)
        try:
            self._call(lambda: decode_for_sweep(self._trainer, made_by, Path(folder), split, settings))
        except OSError as error:
            raise SweepFailed(disk_problem(error)) from error

    def status(self) -> WorkerStatus:
        """Where the trials stand, without waiting for the loop."""
        busy_since = self._busy_since
        last_sign = None if busy_since is None else max(busy_since, last_beat())
        silent = 0.0 if last_sign is None else time.monotonic() - last_sign
        return replace(self._status, seconds_silent=silent)

    def _call(self, job: Callable[[], T]) -> T:
        """Run something in the loop's thread and wait for what it returns."""
        future: Future[T] = Future()
        with self._changed:
            self._jobs.append((job, future))
            self._changed.notify_all()
        return future.result()

    def _admit(self, spec: TrialSpec, token: str) -> Admission:
        self._forget(spec.key)
        if self._is_retired:
            return Admission("later")
        if (refusal := self._triage.refusal(spec.key)) is not None:
            return Admission("refused", refusal)
        if not self._triage.may_join(spec.key, self._trainer.keys()):
            return Admission("later")
        self._triage.begins({spec.key: JOINING})
        try:
            self._trainer.admit(spec)
        except UserError as error:
            return Admission("refused", str(error))
        except OSError as error:
            raise SweepFailed(disk_problem(error)) from error
        finally:
            self._triage.begins({})
        self._members[spec.key] = _Membership(token)
        self._num_vacant = max(0, self._num_vacant - 1)
        return Admission("joined")

    def _let_go(self) -> list[str]:
        keys = self._trainer.keys()
        self._trainer.checkpoint(keys)
        for key in keys:
            self._forget(key)
        return keys

    def _forget(self, key: str) -> None:
        with self._changed:
            self._members.pop(key, None)
            self._released.discard(key)
            self._changed.notify_all()
        self._trainer.drop(key)

    def _run(self) -> None:
        try:
            while True:
                self._once()
        except BaseException as error:
            logger.exception("the loop has ended; Ray starts the worker again")
            self._triage.dies_of(f"{type(error).__name__}: {error}".splitlines()[0])
            self._on_crash()

    def _once(self) -> None:
        """Wait for something to do; calls first, then verdicts, then one step of the pack."""
        with self._changed:
            self._busy_since = None
            if not self._changed.wait_for(self._has_work, IDLE_SECONDS):
                give_back()
                self._changed.wait_for(self._has_work)
            self._busy_since = time.monotonic()
            jobs = list(self._jobs)
            self._jobs.clear()
        for job, future in jobs:
            _answer(job, future)
        self._await_verdicts()
        self._await_newcomers()
        if self._jobs or self._released:
            return
        started = time.monotonic()
        reports = self._step()
        seconds = time.monotonic() - started
        if self._trainer.last_tokens:
            self._step_seconds = seconds
        self._vacate(sum(report.state != "running" for report in reports))
        if any(report.rung is not None for report in reports):
            self._patience_ends = time.monotonic() + VERDICT_SECONDS
        with self._changed:
            for report in reports:
                if report.key in self._members:
                    self._members[report.key].reports.append(report)
            self._changed.notify_all()
        self._publish(seconds)

    def _step(self) -> list[Report]:
        """One step of the pack, which the process may not survive. Where the disk fails, no trial can go on here."""
        steps, parked = self._trainer.steps(), set(self._trainer.parked())
        self._triage.begins({key: step for key, step in steps.items() if key not in parked})
        for key in (key for key, step in steps.items() if step == 0):
            logger.info("%s begins its first step", key)
        try:
            reports = self._trainer.run()
            if self._triage.survives(self._trainer.steps()):
                self._let_go()
        except OSError as error:
            logger.exception("what a trial leaves cannot be written")
            reports = [Report(key, step, "failed", note=disk_problem(error), lost=True) for key, step in steps.items()]
            for key in steps:
                self._trainer.drop(key)
        return reports

    def _has_work(self) -> bool:
        return bool(self._jobs or self._released or self._unparked())

    def _unparked(self) -> bool:
        return len(self._trainer.parked()) < len(self._trainer.keys())

    def _await_verdicts(self) -> None:
        """Give trials at a rung a moment to be judged together, so that the pack does not drain; calls come first."""
        with self._changed:
            while True:
                for key in self._released & set(self._trainer.parked()):
                    self._trainer.go_on(key)
                self._released.clear()
                waiting = self._trainer.parked()
                left = self._patience_ends - time.monotonic()
                if not waiting or self._jobs or left <= 0:
                    return
                self._changed.wait(left)

    def _vacate(self, count: int) -> None:
        if count:
            self._num_vacant += count
            self._vacant_until = time.monotonic() + min(NEWCOMER_SECONDS, self._step_seconds)

    def _await_newcomers(self) -> None:
        """Give who comes in the place of a trial that ended a moment to be there for the next step."""
        left = self._vacant_until - time.monotonic()
        if left <= 0:
            self._num_vacant = 0
        elif self._num_vacant and self._unparked():
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._released, left)

    def _publish(self, seconds: float) -> None:
        now = time.monotonic()
        self._speed.append((now, self._trainer.last_tokens))
        while self._speed and self._speed[0][0] < now - SPEED_SECONDS:
            self._speed.popleft()
        span = max(1e-9, now - self._speed[0][0] + seconds)
        self._status = replace(
            self._status,
            steps=self._trainer.steps(),
            tokens_per_second=sum(tokens for _, tokens in self._speed) / span,
            memory_bytes=psutil.Process().memory_info().rss,
        )


def _answer(job: Callable[[], T], future: "Future[T]") -> None:
    """Run a call; what goes wrong in it is its caller's."""
    try:
        future.set_result(job())
    except Exception as error:
        future.set_exception(error)
