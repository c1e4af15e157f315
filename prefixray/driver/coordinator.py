"""The life of a trial: a study proposes it, a worker trains it, a rung judges it, the study is told how it ended.

`tune.py` lets Ray Tune start the trials and carry their reports here. What always holds:

- One lock guards all state. Tune's thread asks for trials and hands over reports; the driver's loop ticks and draws.
- A trial's result is on disk before its study is told of its end.
- A trial has a slot on a worker, and counts against its stage's concurrency, as long as it stands in `_running`.
- A paused trial has no slot and runs in its study still; that it pauses is written there before its slot is free.
- A trial that nobody can run now stays running in its study, for the next driver to adopt; this driver starts no more.
- `tick` and requests steer workers; `view` changes nothing.
- What this driver writes is the sweep's memory: once the disk has refused, or no worker is left, nothing goes on.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from pydantic import ValidationError

from prefixray.cluster.fleet import NoWorkers
from prefixray.cluster.pool import Pool
from prefixray.driver.books.ledger import BY_REQUEST, Ledger, RunningTrial
from prefixray.driver.books.status_board import StatusBoard
from prefixray.driver.request_handler import RequestHandler
from prefixray.driver.stage import Schedule, Stage
from prefixray.errors import SweepFailed, disk_problem, is_of_disk
from prefixray.search.budget import Budget
from prefixray.search.requests import Inbox, Request
from prefixray.search.status import View
from prefixray.search.trial_source import Proposal, Record
from prefixray.tracking.tracker import Tracker
from prefixray.trial import BEST_LOSS, Ended, Report, TrialSpec

SUSPEND_SECONDS = 20.0  # for checkpoints after an interrupt


class Coordinator:
    """The driver's side of all trials of some stages."""

    def __init__(
        self, stages: Sequence[Stage], pool: Pool, tracker: Tracker, inbox: Inbox, budget: Budget | None = None
    ) -> None:
        """Take over what earlier drivers have left; once `budget` is spent, no new trial starts."""
        self._pool, self._inbox, self._budget = pool, inbox, budget
        stages = list(stages)  # others may join
        self._running: dict[str, RunningTrial] = {}
        self._to_start_again: list[str] = []  # trials that Tune has lost by falling over
        self._stopping: set[str] = set()  # trials that a request stops, until their last reports come
        self._over = False
        self.lost: dict[str, list[str]] = {}
        """Trials that nobody can run now, by the reason."""
        self.broken: str | None = None
        """Why this driver cannot go on: its disk, or that no worker is left."""
        self._lock = threading.RLock()
        board = self._board = StatusBoard(stages)
        self._ledger = Ledger(tracker, board)
        self._schedule = Schedule(
            stages, pool, budget, num_begun=board.num_begun, num_active=self._num_active, num_paused=board.num_paused
        )
        self._requests = RequestHandler(stages, self)
        self.is_searching, self.most_at_once = self._schedule.is_searching, self._schedule.most_at_once
        self._ledger.take_over_all(stages)

    def next(self) -> dict[str, Any] | Literal["FINISHED"] | None:
        """The next trial as Tune's configuration; None where none can start now."""
        with self._lock, self._noting_end():
            while self._to_start_again:
                running = self._running.get(self._to_start_again.pop(0))
                if running is not None:
                    return {"spec": running.spec, "namespace": self._pool.namespace}
            for stage in self._schedule.in_turn():
                while (proposal := self._schedule.propose(stage)) is not None:
                    try:
                        return self._start(stage, stage.spec(proposal), proposal)
                    except ValidationError as error:  # a combination of values that the check of the space did not try
                        self._ledger.refuse(stage, proposal, error)
                if self._board.num_paused(stage) and self._schedule.is_done(stage):
                    self._ledger.end_paused(stage)
            self._ledger.take_over_all(following := self._schedule.follow())
            if following:
                return self.next()
            self._over = self._schedule.is_over()
            return "FINISHED" if self._over else None

    def on_report(self, report: Report) -> bool:
        """Take a report; whether the trial goes on."""
        with self._lock, self._noting_end():
            running = self._running.get(report.key)
            if running is None:
                return False
            if report.lost:
                self._lose(report)
                return False
            if report.state == "failed":
                self._end(report, "failed")
                return False
            if (loss := report.loss) is not None:
                self._ledger.add_losses(running, report, loss)
            if report.state == "done":
                self._end(report, "done", report.metrics[BEST_LOSS])
                return False
            if report.state == "stopped" or report.key in self._stopping:
                self._end(replace(report, note=BY_REQUEST), "stopped")
                return False
            return report.rung is None or self._judge(running, report, report.rung)

    def start_again(self) -> None:
        """Let Tune, which has fallen over and is run anew, have all running trials again, from new checkpoints."""
        self.suspend()
        with self._lock:
            self._to_start_again = list(self._running)

    def serve(self) -> list[str]:
        """Execute the requests that wait in the sweep's folder; their answers, and news of workers."""
        with self._noting_end():
            return [*self.news(), *self._inbox.serve(self._act)]

    def news(self) -> list[str]:
        """News of workers, and of searches that have found enough; each is told once."""
        with self._lock:
            return [*self._pool.news(), *self._schedule.news()]

    def tick(self) -> None:
        """Do what recurs: the driver's loop calls this every moment, whether it draws or not.

        Asks the workers for their status, starts and ends workers as the trials need, charges the budget, gives idle
        workers something to do, and repeats each request to stop a trial, which may have missed the trial's worker.
        """
        statuses = self._pool.status(timeout=1.0)  # without the lock, since a worker may not answer
        with self._lock, self._noting_end():
            self._pool.rescale(*self._schedule.demand())
            if self._budget is not None:
                self._budget.note(self._pool.device_seconds, counts=self.is_searching())
            self._pool.use_idle(may_begin=not self._schedule.could_start())
            for key in self._stopping:
                self._pool.stop(key)
            self._board.note_workers(statuses, self._running)

    def view(self, title: str, stage: str) -> View:
        """A picture for the live view, as of the last report and the last tick; changes nothing."""
        with self._lock:
            return self._board.view(title, stage, num_slots=self._pool.num_slots, is_running=bool(self._running))

    def suspend(self) -> None:
        """Have the workers checkpoint all trials, for the next driver to go on with."""
        self._pool.suspend(SUSPEND_SECONDS)

    def is_over(self) -> bool:
        """Whether Tune was told that no trial comes any more; until then a search may be extended."""
        return self._over

    def running(self) -> Sequence[str]:
        """The keys of the trials that run."""
        return list(self._running)

    def halt(self, stage: Stage, record: Record, request_id: str) -> None:
        """Stop a trial for a request: on its worker, or in its study alone where no worker has it."""
        key = f"{stage.name}/{record.number}"
        stage.source.mark_stopped(record.number, request_id)
        if key in self._running:
            self._stopping.add(key)
            self._pool.stop(key)
        else:
            self._ledger.take_over(stage, stage.record(record.number))

    def resume(self, stage: Stage, record: Record, request_id: str) -> bool:
        """Let a paused trial go on for a request; whether under this driver."""
        stage.policy.resume(f"{stage.name}/{record.number}")
        stage.source.resume(record.number, request_id)
        return not self.lost

    def reopen(self, stage: Stage) -> str | None:
        """Let a stage that had nothing more to start go on; the run for which it waits, None where it goes on now."""
        return self._schedule.reopen(stage)

    def _num_active(self, stage: Stage) -> int:
        return sum(running.stage is stage for running in self._running.values())

    def _act(self, request_id: str, request: Request) -> str | None:
        with self._lock:
            return self._requests.execute(request_id, request)

    @contextmanager
    def _noting_end(self) -> Iterator[None]:
        """Note why this driver cannot go on; Tune hides who raised what."""
        if self.broken is not None:
            raise SweepFailed(self.broken)
        try:
            yield
        except OSError as error:
            if is_of_disk(error):
                self.broken = disk_problem(error)
            raise
        except NoWorkers as error:
            self.broken = str(error)
            raise

    def _start(self, stage: Stage, spec: TrialSpec, proposal: Proposal) -> dict[str, Any]:
        """Start a trial; a new one from nothing that lies in its folder, which may have been copied meanwhile."""
        if not proposal.adopted:
            spec.files.delete()
        self._pool.place(spec, exclusive=stage.arm.exclusive)
        self._running[spec.key] = RunningTrial(stage, spec, proposal.number)
        self._ledger.begin(stage, spec, proposal)
        return {"spec": spec, "namespace": self._pool.namespace}

    def _judge(self, running: RunningTrial, report: Report, rung: int) -> bool:
        """Whether a trial goes on from a rung; all trials that have reached the rung with it count first."""
        stage, losses = running.stage, report.packmates
        verdict = stage.policy.judge(report.key, rung, losses, more_come=self._schedule.more_come(stage))
        if verdict == "pause":
            self._ledger.pause(running, report)
            self._leave(report.key, has_ended=False)
        elif verdict == "stop":
            self._end(replace(report, note=stage.at_rung(rung)), "stopped")
        return verdict == "continue"

    def _lose(self, report: Report) -> None:
        """Give a trial up that nobody can run now, and start no more; it stays running in its study."""
        self._leave(report.key, has_ended=False)
        self._schedule.hold()
        self.lost.setdefault(report.note or "", []).append(report.key)

    def _end(self, report: Report, state: Ended, value: float | None = None) -> None:
        """Free a trial's slot, write down how it ended, and have it decoded where its stage wants that."""
        running = self._leave(report.key, has_ended=True)
        self._ledger.end(running, report, state, value)
        if state == "done" and running.stage.decode is not None:
            self._pool.decode_when_idle(running.stage.decode(running.spec))

    def _leave(self, key: str, *, has_ended: bool) -> RunningTrial:
        """Free a trial's slot: it runs no more."""
        self._stopping.discard(key)
        self._pool.release(key, has_ended=has_ended)
        return self._running.pop(key)
