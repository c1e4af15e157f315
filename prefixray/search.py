"""Trials on the move: from a study's proposal through a worker's pack to the study's verdict.

`Coordinator` is the driver's side: it asks the studies, places trials, takes their reports, judges rungs, and tells
studies and tracker. `engine.py` lets Ray Tune carry the trials there and their reports back.
"""

import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from prefixray.config import ArmConfig, SearchConfig
from prefixray.live import Row, State, View
from prefixray.pool import DecodeJob, Pool
from prefixray.space import Scalar
from prefixray.study import Proposal, Record, TrialSource
from prefixray.tracking import Tracker
from prefixray.trial import Report, TrialSpec

SUSPEND_SECONDS = 20.0  # for checkpoints after an interrupt
Ended = Literal["done", "stopped", "failed"]
MakeSpec = Callable[[Proposal | Record], TrialSpec]


@dataclass(frozen=True)
class Stage:
    """Trials of one arm that are to be run."""

    name: str  # the trials' keys are NAME/NUMBER
    arm: ArmConfig
    source: TrialSource
    concurrency: int
    spec: MakeSpec
    rungs: tuple[int, ...] = ()
    decode: Callable[[TrialSpec], DecodeJob] | None = None  # what is to be decoded of a trial that is done

    def expected_steps(self, keep: float) -> float:
        """Steps of a trial on average, when the share `keep` goes on at every rung."""
        ends = [*self.rungs, self.arm.train.num_steps]
        starts = [0, *self.rungs]
        return sum(keep**place * (end - start) for place, (start, end) in enumerate(zip(starts, ends, strict=True)))


@dataclass
class _Running:
    stage: Stage
    spec: TrialSpec
    number: int


class Coordinator:
    """The driver's side of all trials of some stages."""

    def __init__(self, stages: Sequence[Stage], pool: Pool, tracker: Tracker, search: SearchConfig) -> None:
        self._stages, self._pool, self._tracker = list(stages), pool, tracker
        self._keep, self._max_failures = search.keep, search.max_failures
        self._running: dict[str, _Running] = {}
        self._rows: dict[str, Row] = {}
        self._rungs: dict[tuple[str, int], dict[str, float]] = {}  # (stage, step) -> scores of all that reached it
        self._exhausted: set[str] = set()
        self.lost: list[str] = []
        """Trials that could not be brought to an end, and why."""
        self._lock = threading.RLock()
        self._started, self._steps_before = time.monotonic(), 0
        self.deadline = math.inf
        """`time.monotonic()` after which no new trial is started."""
        for stage in self._stages:
            for record in stage.source.records():
                self._remember(stage, record)
        self._steps_before = self._steps_done()

    def next(self) -> dict[str, Any] | Literal["FINISHED"] | None:
        """What Tune shall start: a trial's configuration; None: nothing now."""
        with self._lock:
            for stage in self._stages:
                if not self._may_start(stage):
                    continue
                proposal = stage.source.ask()
                if proposal is None:
                    self._exhausted.add(stage.name)
                    continue
                return self._start(stage, proposal)
            return "FINISHED" if len(self._exhausted) == len(self._stages) else None

    def on_report(self, report: Report) -> bool:
        """Take a report; whether the trial goes on."""
        with self._lock:
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
            score = report.metrics["dev/loss"]
            stage.source.report(number, report.step, score)
            self._tracker.log(report.key, report.step, report.metrics)
            self._rows[report.key] = replace(self._rows[report.key], step=report.step, score=score)
            if report.state == "done":
                self._end(report, "done", report.metrics["dev/best_loss"])
                return False
            if report.rung is not None and not self._passes(stage, report):
                place = running.spec.rungs.index(report.rung) + 1
                self._end(replace(report, note=f"at rung {place}"), "stopped", None)
                return False
            return True

    def on_crash(self, key: str, note: str) -> None:
        """The process of a trial has failed in a way that is not the trial's."""
        with self._lock:
            if key in self._running:
                self._lose(Report(key, 0, "failed", note=note, lost=True))

    def most_at_once(self) -> int:
        """How many trials there can be at a time."""
        slots = self._pool.num_slots * self._pool.num_workers
        return max(1, min(slots, sum(stage.concurrency for stage in self._stages)))

    def suspend(self) -> None:
        """Checkpoint all trials, for the next driver to go on with."""
        self._pool.suspend(SUSPEND_SECONDS)

    def view(self, title: str, stage: str) -> View:
        """A picture for the live view."""
        statuses = self._pool.status(timeout=1.0)
        with self._lock:
            self._pool.use_idle()
            for status in statuses:
                for key, step in status.steps.items():
                    if key in self._running:
                        self._rows[key] = replace(self._rows[key], step=max(step, self._rows[key].step))
            rows = tuple(self._rows.values())
            speed = sum(status.tokens_per_second for status in statuses) if self._running else 0.0
            memory = sum(status.memory_bytes for status in statuses)
            return View(
                title=title,
                stage=stage,
                rows=rows,
                tokens_per_second=speed,
                memory=f"workers {memory / 2**30:.1f} GiB" if memory else "",
                seconds_left=self._seconds_left(),
            )

    def _steps_done(self) -> int:
        return sum(row.step for row in self._rows.values())

    def _seconds_left(self) -> float | None:
        """From the steps that are expected to come, at the pace of this driver so far."""
        expected = sum(stage.source.num_wanted() * stage.expected_steps(self._keep) for stage in self._stages)
        done = self._steps_done()
        if done == self._steps_before:
            return None
        pace = (done - self._steps_before) / (time.monotonic() - self._started)
        return max(0.0, expected - done) / pace

    def _may_start(self, stage: Stage) -> bool:
        active = sum(running.stage is stage for running in self._running.values())
        if stage.name in self._exhausted or active >= stage.concurrency:
            return False
        if time.monotonic() > self.deadline and not stage.source.num_orphans():
            self._exhausted.add(stage.name)
            return False
        return self._pool.has_room(exclusive=stage.arm.exclusive)

    def _start(self, stage: Stage, proposal: Proposal) -> dict[str, Any]:
        spec = stage.spec(proposal)
        worker = self._pool.place(spec.key, exclusive=stage.arm.exclusive)
        self._running[spec.key] = _Running(stage, spec, proposal.number)
        self._rows[spec.key] = _row(stage, spec, proposal, state="running")
        self._tracker.trial(spec.key, _params(spec), _tags(stage, spec))
        return {"spec": spec, "worker": worker, "max_failures": self._max_failures}

    def _lose(self, report: Report) -> None:
        """Start nothing more: what cannot be run now stays running in its study, for the next driver to adopt."""
        del self._running[report.key]
        self._pool.release(report.key)
        self._exhausted = {stage.name for stage in self._stages}
        self.lost.append(f"{report.key}: {report.note}")

    def _end(self, report: Report, state: Ended, value: float | None) -> None:
        """Tell everyone, the study last: a trial that it calls ended has its result on disk."""
        running = self._running.pop(report.key)
        self._pool.release(report.key)
        _write_result(running.spec, report, state)
        self._tracker.end(report.key, state, _small_artifact(running.spec))
        if state == "done" and running.stage.decode is not None:
            self._pool.decode_when_idle(running.stage.decode(running.spec))
        running.stage.source.tell(running.number, state, value, report.note if state == "failed" else None)
        row = self._rows[report.key]
        score = row.score if value is None else value
        self._rows[report.key] = replace(
            row, state=state, note=report.note, step=max(report.step, row.step), score=score
        )
        for checkpoint in Path(running.spec.folder).glob("step-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)

    def _passes(self, stage: Stage, report: Report) -> bool:
        """Whether a trial is among the share that goes on from this rung; all that reached it with it count first."""
        assert report.rung is not None, "a verdict is for a rung"
        scores = self._rungs.setdefault((stage.name, report.rung), {})
        scores.update(report.packmates)
        scores[report.key] = report.metrics["dev/loss"]
        num_kept = max(1, math.ceil(self._keep * len(scores)))
        return sorted(scores.values()).index(scores[report.key]) < num_kept

    def _remember(self, stage: Stage, record: Record) -> None:
        """Take over what an earlier driver has left: rungs, rows, and what the tracker may lack."""
        try:
            spec = stage.spec(record)
        except ValidationError:
            return  # its driver died before all its values were drawn
        if record.state == "running" and (result := _read_result(spec)) is not None:
            record = _settle(stage, record, result)
        for step in spec.rungs:
            if step in record.reports:
                self._rungs.setdefault((stage.name, step), {})[spec.key] = record.reports[step]
        if record.state == "running":
            return
        last = max(record.reports, default=0)
        at_rung = record.state == "stopped" and last in spec.rungs
        note = f"at rung {spec.rungs.index(last) + 1}" if at_rung else record.note
        row = _row(stage, spec, record, state=record.state)
        self._rows[spec.key] = replace(row, step=last, score=record.value, note=note)
        self._tracker.trial(spec.key, _params(spec), _tags(stage, spec))
        for step, value in record.reports.items():
            self._tracker.log(spec.key, step, {"dev/loss": value})
        self._tracker.end(spec.key, record.state, _small_artifact(spec))


def _write_result(spec: TrialSpec, report: Report, state: Ended) -> None:
    """`result.json`: what came of a trial."""
    folder = Path(spec.folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        **asdict(report),
        "state": state,
        "replicate": spec.replicate,
        "config": spec.config.model_dump(mode="json"),
    }
    scratch = folder / "result.json.tmp"
    scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    scratch.replace(folder / "result.json")


def _read_result(spec: TrialSpec) -> dict[str, Any] | None:
    path = Path(spec.folder) / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _settle(stage: Stage, record: Record, result: Mapping[str, Any]) -> Record:
    """Tell the study what its driver had written down, but died before it told."""
    value = result["metrics"]["dev/best_loss"] if result["state"] == "done" else None
    note = result["note"] if result["state"] == "failed" else None
    stage.source.tell(record.number, result["state"], value, note)
    return next(told for told in stage.source.records() if told.number == record.number)


def _small_artifact(spec: TrialSpec) -> Path | None:
    """What a tracker may take a copy of: everything but a whole model."""
    folder = Path(spec.folder) / "artifact"
    return folder if folder.is_dir() and spec.config.method.method != "finetune" else None


def _row(stage: Stage, spec: TrialSpec, trial: Proposal | Record, *, state: State) -> Row:
    shown: Mapping[str, Scalar] = {"seed": spec.replicate} if "item" in trial.values else trial.values
    return Row(stage.name, trial.number, shown, 0, spec.config.num_steps, None, state)


def _params(spec: TrialSpec) -> dict[str, Scalar]:
    """A trial's configuration for the tracker: every value under the name it has in the sweep file."""
    config = spec.config.model_dump(mode="json")
    return {**config.pop("method"), **config, "replicate": spec.replicate}


def _tags(stage: Stage, spec: TrialSpec) -> dict[str, str]:
    return {"prefixray.arm": stage.arm.name, "prefixray.stage": stage.name, "prefixray.replicate": str(spec.replicate)}
