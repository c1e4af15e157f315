"""Trials on the move: from a study's proposal through a worker's pack to the study's verdict.

`Coordinator` is the driver's side: it asks the studies, places trials, takes their reports, judges rungs, and tells
studies and tracker. `engine.py` lets Ray Tune carry the trials there and their reports back.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, assert_never

from pydantic import ValidationError

from prefixray.cluster.pool import NoWorkers, Pool
from prefixray.config.arms import read_configuration
from prefixray.driver.stage import (
    Stage,
    budget_of,
    budget_text,
    may_lack_a_score,
    params_of,
    record_of,
    row_of,
    settle,
    small_artifact,
    tags_of,
    turn_of,
    unbuilt_row,
)
from prefixray.errors import SweepFailed, UserError, disk_problem, is_of_disk
from prefixray.search.budget import Budget
from prefixray.search.requests import Add, Extend, Finish, Inbox, Request, Stop
from prefixray.search.status import Row, View
from prefixray.search.study import ArmStudy, Proposal, Record
from prefixray.system.yaml_document import Document, suggestion
from prefixray.tracking.tracker import Tracker
from prefixray.trial import Ended, Report, TrialSpec, WorkerStatus

logger = logging.getLogger(__name__)

SUSPEND_SECONDS = 20.0  # for checkpoints after an interrupt
BY_REQUEST = "by request"  # why a trial was stopped, where no rung did it
Searches = Mapping[str, tuple[Stage, ArmStudy]]  # by arm


@dataclass
class _Running:
    stage: Stage
    spec: TrialSpec
    number: int
    reported: set[int] = field(default_factory=set)  # steps, to this driver


class Coordinator:
    """The driver's side of all trials of some stages."""

    def __init__(self, stages: Sequence[Stage], pool: Pool, tracker: Tracker, inbox: Inbox) -> None:
        self._stages, self._pool, self._tracker, self._inbox = list(stages), pool, tracker, inbox
        self._running: dict[str, _Running] = {}
        self._rows: dict[str, Row] = {}
        self._statuses: Sequence[WorkerStatus] = ()  # of the last tick
        self._exhausted: set[str] = set()
        self._over = False  # Tune was told that nothing comes; until then a search may be extended
        self._stopping: set[str] = set()  # trials that a request stops, while their workers do not know it yet
        self.lost: dict[str, list[str]] = {}
        """Why trials could not be brought to an end, and which."""
        self.broken: str | None = None
        """What keeps this driver from going on: its disk, or that no worker is left."""
        self._lock = threading.RLock()
        self._started, self._steps_before = time.monotonic(), 0
        self.budget: Budget | None = None
        """No new trial is started once it is spent."""
        for stage in self._stages:
            for record in stage.source.records():
                self._remember(stage, record)
        self._steps_before = self._steps_done()

    def next(self) -> dict[str, Any] | Literal["FINISHED"] | None:
        """What Tune shall start: a trial's configuration; None: nothing now."""
        with self._lock, self._noting_end():
            for stage in self._in_turn():
                if not self._may_start(stage):
                    continue
                while (proposal := stage.source.ask()) is not None:
                    try:
                        return self._start(stage, stage.spec(proposal), proposal)
                    except ValidationError as error:  # no end of a range showed it
                        self._cannot_be_built(stage, proposal, error)
                self._exhausted.add(stage.name)
            self._over = len(self._exhausted) == len(self._stages) and not self._running
            return "FINISHED" if self._over else None

    def on_report(self, report: Report) -> bool:
        """Take a report; whether the trial goes on."""
        with self._lock, self._noting_end():
            running = self._running.get(report.key)
            if running is None:
                return False
            stage, number = running.stage, running.number
            if report.lost:
                self._lose(report)
                return False
            if report.state == "failed":
                self._end(report, "failed", None)
                return False
            if "dev/loss" in report.metrics:
                score = report.metrics["dev/loss"]
                for step in report.earlier.keys() - running.reported:  # on their way when a driver or a worker died
                    stage.source.report(number, step, report.earlier[step])
                    self._tracker.log(report.key, step, {"dev/loss": report.earlier[step]})
                stage.source.report(number, report.step, score)
                self._tracker.log(report.key, report.step, report.metrics)
                running.reported |= {*report.earlier, report.step}
                self._rows[report.key] = replace(self._rows[report.key], step=report.step, score=score)
            if report.state == "done":
                self._end(report, "done", report.metrics["dev/best_loss"])
                return False
            if report.state == "stopped" or report.key in self._stopping:
                self._end(replace(report, note=BY_REQUEST), "stopped", None)
                return False
            if report.rung is None:
                return True
            losses = {**report.packmates, report.key: report.metrics["dev/loss"]}
            if stage.halving.judge(report.key, report.rung, losses) == "continue":
                return True
            place = stage.halving.rungs.index(report.rung) + 1
            self._end(replace(report, note=f"at rung {place}"), "stopped", None)
            return False

    def on_crash(self, key: str, note: str) -> None:
        """The process of a trial has failed in a way that is not the trial's."""
        with self._lock:
            if key in self._running:
                self._lose(Report(key, 0, "failed", note=note, lost=True))

    def serve(self) -> list[str]:
        """Execute the requests that wait in the sweep's folder; what came of each, and news of workers."""
        with self._noting_end():
            return [*self._pool.news(), *self._inbox.serve(self._act)]

    def most_at_once(self) -> int:
        """How many trials there can be at a time."""
        slots = self._pool.num_slots * self._pool.most_workers
        return max(1, min(slots, sum(stage.concurrency for stage in self._stages)))

    def suspend(self) -> None:
        """Checkpoint all trials, for the next driver to go on with."""
        self._pool.suspend(SUSPEND_SECONDS)

    def tick(self) -> None:
        """Look after workers and trials: the driver's one loop calls this every moment, whether it draws or not.

        Asks the workers for their status, starts and ends workers as the trials need, charges the budget, hands out
        decodings to idle workers, and repeats requests to stop a trial that may have missed its worker.
        """
        statuses = self._pool.status(timeout=1.0)  # takes long where a worker does not answer, so without the lock
        with self._lock, self._noting_end():
            self._statuses = statuses
            self._pool.rescale(*self._demand())
            if self.budget is not None:
                self.budget.note(self._pool.device_seconds)
            self._pool.use_idle()
            for key in self._stopping:
                self._pool.stop(key)
            for status in statuses:
                for key, step in status.steps.items():
                    if key in self._running:
                        self._rows[key] = replace(self._rows[key], step=max(step, self._rows[key].step))

    def view(self, title: str, stage: str) -> View:
        """A picture for the live view, as of the last report and the last `tick`; changes nothing."""
        with self._lock:
            statuses, rows = self._statuses, tuple(self._rows.values())
            speed = sum(status.tokens_per_second for status in statuses) if self._running else 0.0
            return View(
                title=title,
                stage=stage,
                rows=rows,
                budget="; ".join(budget_of(s, rows) for s in self._stages if isinstance(s.source, ArmStudy)),
                tokens_per_second=speed,
                workers=self._workers_text(statuses),
                seconds_left=self._seconds_left(),
            )

    def _act(self, request_id: str, request: Request) -> str | None:
        """Execute a request, again if its driver died before it could answer; None where it is for a search to come.

        Raises `UserError` where it cannot be.
        """
        with self._lock:
            searches = {s.arm.name: (s, s.source) for s in self._stages if isinstance(s.source, ArmStudy)}
            match request:
                case Stop():
                    return self._stop_trial(request.trial, request_id, searches)
                case Add() | Extend() if self._over or not searches:
                    return None
                case Add():
                    stage, study = _search_of(request.arm, searches)
                    given = Document(f"control/{request_id}.json", json.dumps(dict(request.values), ensure_ascii=False))
                    number = study.add(read_configuration(given, stage.arm), request_id)
                    return f"{stage.name}/{number} is queued{self._when(stage)}: {budget_text(study)}"
                case Extend():
                    names = list(searches) if request.arm is None else [request.arm]
                    return "; ".join(self._extend(*_search_of(name, searches), request, request_id) for name in names)
                case Finish():
                    return self._finish(request_id, searches)
                case _:
                    assert_never(request)

    def _stop_trial(self, key: str, request_id: str, searches: Searches) -> str:
        name, _, number = key.rpartition("/")
        for stage, study in searches.values():
            if name == stage.name and number.isdecimal() and study.drop(int(number), request_id):
                return f"{key} is taken back from the queue: {budget_text(study)}"
            for record in study.records():
                if key != f"{stage.name}/{record.number}":
                    continue
                if record.state != "running" and record.stopped_by != request_id:
                    why = record.state + (f": {record.note}" if record.note else "")
                    raise UserError(f"stop {key}: has ended already ({why})")
                return self._halt(stage, record, request_id)
        running = ", ".join(sorted(self._running)) or "none"
        hint = f"running are {running}" if searches else "the search is over, and the final stage needs all its runs"
        raise UserError(f"stop {key}: no such trial of a search ({hint})")

    def _halt(self, stage: Stage, record: Record, request_id: str) -> str:
        """Stop a trial, now where it runs, or in the study alone where nobody runs it."""
        key = f"{stage.name}/{record.number}"
        if record.state == "running":
            stage.source.mark_stopped(record.number, request_id)
            if key in self._running:
                self._stopping.add(key)
                self._pool.stop(key)
            else:
                self._remember(stage, record_of(stage, record.number))
        last = max(record.reports, default=None)
        return f"{key} is stopped" + (f" with dev/loss {record.reports[last]:.3f} of step {last}" if last else "")

    def _extend(self, stage: Stage, study: ArmStudy, request: Extend, request_id: str) -> str:
        study.extend(request.num_trials, request_id)
        return f"{stage.name} is extended{self._when(stage)}: {budget_text(study)}"

    def _finish(self, request_id: str, searches: Searches) -> str:
        """Close every search, unless an arm would be left without a score."""
        if not searches:
            raise UserError("finish: the search is over already; the final stage is running")
        if blank := [name for name, (_, study) in searches.items() if may_lack_a_score(study)]:
            raise UserError(f"finish: {', '.join(blank)}: has no dev/loss yet that the final stage needs; wait for one")
        num_stopped = 0
        for stage, study in searches.values():
            study.close(request_id)
            for record in study.records():
                if record.state == "running":
                    self._halt(stage, record, request_id)
                    num_stopped += 1
        return f"the search ends with what it has; {num_stopped} running trials are stopped; then comes the final stage"

    def _when(self, stage: Stage) -> str:
        """Let a search that had nothing more to start go on; said where it cannot in this run of the driver."""
        if self.lost or self._is_spent():
            return " for the next run of the sweep, since this one starts no more trials"
        self._exhausted.discard(stage.name)
        return ""

    @contextmanager
    def _noting_end(self) -> Iterator[None]:
        """What is written here is the sweep's memory: without it nothing may go on. Tune hides who raised what."""
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

    def _steps_done(self) -> int:
        return sum(row.step for row in self._rows.values())

    def _workers_text(self, statuses: Sequence[WorkerStatus]) -> str:
        """Those that have answered."""
        memory = sum(status.memory_bytes for status in statuses)
        used = f", {memory / 2**30:.1f} GiB" if memory else ""
        return f"{len(statuses)} workers x {self._pool.num_slots} slots{used}" if statuses else ""

    def _seconds_left(self) -> float | None:
        """From the steps that are expected to come, at the pace of this driver so far."""
        expected = sum(
            stage.source.num_wanted() * stage.halving.expected_steps(stage.arm.num_steps) for stage in self._stages
        )
        done = self._steps_done()
        if done == self._steps_before:
            return None
        pace = (done - self._steps_before) / (time.monotonic() - self._started)
        return max(0.0, expected - done) / pace

    def _cannot_be_built(self, stage: Stage, proposal: Proposal, error: ValidationError) -> None:
        note = f"its values do not go together: {error.errors()[0]['msg']}"
        logger.warning("%s/%d %s: %s", stage.name, proposal.number, note, json.dumps(dict(proposal.values)))
        stage.source.tell(proposal.number, "failed", None, note)
        self._rows[f"{stage.name}/{proposal.number}"] = unbuilt_row(stage, record_of(stage, proposal.number))

    def _in_turn(self) -> list[Stage]:
        """The stages in the order in which they are asked.

        In a search those that need workers of their own come last, and first when the others have begun half of their
        trials, until they have too: after that what ends a search early finds every arm half searched. While one waits
        for a worker to be empty, no trials that share are placed there.
        """
        due = [stage for stage in self._stages if stage.arm.exclusive and not self._is_half_begun(stage)]
        if due and not all(self._is_half_begun(stage) for stage in self._stages if not stage.arm.exclusive):
            due = []
        self._pool.reserve(any(self._num_active(stage) < stage.concurrency for stage in due))
        return sorted(self._stages, key=lambda stage: turn_of(stage, is_due=stage in due))

    def _is_half_begun(self, stage: Stage) -> bool:
        return stage.name in self._exhausted or 2 * self._num_begun(stage) >= stage.source.num_wanted()

    def _num_begun(self, stage: Stage) -> int:
        return sum(row.arm == stage.name for row in self._rows.values())

    def _num_active(self, stage: Stage) -> int:
        return sum(running.stage is stage for running in self._running.values())

    def _may_start(self, stage: Stage) -> bool:
        if stage.name in self._exhausted or self._num_active(stage) >= stage.concurrency:
            return False
        if self._is_spent() and not stage.source.num_orphans():
            self._exhausted.add(stage.name)
            return False
        return self._pool.has_room(exclusive=stage.arm.exclusive)

    def _is_spent(self) -> bool:
        return self.budget is not None and self.budget.problem() is not None

    def _demand(self) -> tuple[int, int]:
        """Trials that run or could be started now: those that share a worker, and those that need one each."""
        sharing = exclusive = 0
        for stage in self._stages:
            active = self._num_active(stage)
            left = 0 if stage.name in self._exhausted else max(0, stage.source.num_wanted() - self._num_begun(stage))
            at_once = active + min(stage.concurrency - active, left)
            if stage.arm.exclusive:
                exclusive += at_once
            else:
                sharing += at_once
        return sharing, exclusive

    def _start(self, stage: Stage, spec: TrialSpec, proposal: Proposal) -> dict[str, Any]:
        namespace = self._pool.place(spec, exclusive=stage.arm.exclusive)
        self._running[spec.key] = _Running(stage, spec, proposal.number)
        self._rows[spec.key] = row_of(stage, spec, proposal, state="running")
        self._tracker.trial(spec.key, params_of(spec), tags_of(stage, spec))
        return {"spec": spec, "namespace": namespace}

    def _lose(self, report: Report) -> None:
        """Start nothing more: what cannot be run now stays running in its study, for the next driver to adopt."""
        del self._running[report.key]
        self._stopping.discard(report.key)
        self._pool.release(report.key)
        self._exhausted = {stage.name for stage in self._stages}
        self.lost.setdefault(report.note or "", []).append(report.key)

    def _end(self, report: Report, state: Ended, value: float | None) -> None:
        """Tell everyone, the study last: a trial that it calls ended has its result on disk."""
        running = self._running.pop(report.key)
        self._pool.release(report.key)
        running.spec.write_result(report, state)
        self._tracker.end(report.key, state, small_artifact(running.spec))
        if state == "done" and running.stage.decode is not None:
            self._pool.decode_when_idle(running.stage.decode(running.spec))
        running.stage.source.tell(running.number, state, value, report.note)
        row = self._rows[report.key]
        score = row.score if value is None else value
        self._rows[report.key] = replace(
            row, state=state, note=report.note, step=max(report.step, row.step), score=score
        )
        self._stopping.discard(report.key)
        running.spec.files.delete_checkpoints()

    def _remember(self, stage: Stage, record: Record) -> None:
        """Take over what an earlier driver has left: rungs, rows, and what the tracker may lack."""
        try:
            spec = stage.spec(record)
        except ValidationError:  # its driver died before all its values were drawn, or they do not go together
            if record.state == "failed":
                self._rows[f"{stage.name}/{record.number}"] = unbuilt_row(stage, record)
            return
        last = max(record.reports, default=0)
        if record.state == "running" and record.stopped_by is not None and spec.files.result() is None:
            spec.write_result(Report(spec.key, last, "stopped", note=BY_REQUEST), "stopped")
        if record.state == "running" and (result := spec.files.result()) is not None:
            record = settle(stage, record, result)
        stage.halving.remember(spec.key, record.reports)
        if record.state == "running":
            return
        row = row_of(stage, spec, record, state=record.state)
        self._rows[spec.key] = replace(row, step=last, score=record.value, note=record.note)
        self._tracker.trial(spec.key, params_of(spec), tags_of(stage, spec))
        for step, value in record.reports.items():
            self._tracker.log(spec.key, step, {"dev/loss": value})
        self._tracker.end(spec.key, record.state, small_artifact(spec))
        spec.files.delete_checkpoints()


def _search_of(arm: str, searches: Searches) -> tuple[Stage, ArmStudy]:
    if arm not in searches:
        raise UserError(f"--arm {arm}: nothing is searched there{suggestion(arm, searches, what='the searches are')}")
    return searches[arm]
