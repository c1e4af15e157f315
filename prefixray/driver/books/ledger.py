"""Writes down what happens to trials: in their studies and folders, in the tracker, and on the status board.

A driver may be killed between any two of these writes; the next one takes over what they have left.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from prefixray.driver.books.status_board import StatusBoard
from prefixray.driver.stage import Stage
from prefixray.search.policies.contract import Verdict
from prefixray.search.trial_source import Proposal, Record
from prefixray.tracking.tracker import Tracker
from prefixray.trial import BEST_LOSS, Ended, Report, TrialSpec

logger = logging.getLogger(__name__)

BY_REQUEST = "by request"  # the note of a trial that a request has stopped


@dataclass
class RunningTrial:
    """A trial that this driver has started."""

    stage: Stage
    spec: TrialSpec
    number: int
    reported: set[int] = field(default_factory=set)  # steps, to this driver


class Ledger:
    """Writes down what happens to trials: in their studies and folders, in the tracker, and on the status board."""

    def __init__(self, tracker: Tracker, board: StatusBoard) -> None:
        self._tracker, self._board = tracker, board

    def begin(self, stage: Stage, spec: TrialSpec, proposal: Proposal) -> None:
        """Note a trial that starts."""
        stage.policy.begin(spec.key, spec.config.method.kind)
        self._board.begin(stage, spec, proposal)
        self._track(stage, spec, is_new=not proposal.adopted)

    def refuse(self, stage: Stage, proposal: Proposal, error: ValidationError) -> None:
        """End a trial as failed whose values cannot be a configuration."""
        note = f"its values do not go together: {error.errors()[0]['msg']}"
        logger.warning("%s/%d %s: %s", stage.name, proposal.number, note, json.dumps(dict(proposal.values)))
        stage.source.tell(proposal.number, "failed", None, note)
        self._board.add_unbuilt(stage, stage.record(proposal.number))

    def add_losses(self, running: RunningTrial, report: Report, loss: float) -> None:
        """Note a trial's dev loss, and earlier ones whose reports were lost when a driver or a worker died."""
        source, number = running.stage.source, running.number
        for step in report.earlier.keys() - running.reported:
            source.report(number, step, report.earlier[step])
            self._tracker.log(report.key, step, {running.spec.loss_at(step): report.earlier[step]})
        source.report(number, report.step, loss)
        if report.step not in running.reported:  # a trial that goes on from a checkpoint may report a step again
            self._tracker.log(report.key, report.step, report.metrics)
        running.reported |= {*report.earlier, report.step}
        self._board.report(report)

    def pause(self, running: RunningTrial, report: Report) -> None:
        """Note that a trial pauses, first in its study."""
        running.stage.source.pause(running.number, report.step, report.metrics)
        self._board.pause(report.key, running.stage.at_rung(report.step))
        self._tracker.pause(report.key)

    def end_paused(self, stage: Stage) -> None:
        """End all trials of a stage that pause, as stopped at their rungs."""
        for record in stage.source.records():
            if record.state == "paused":
                spec, step = stage.spec(record), record.last_step
                report = Report(spec.key, step, "stopped", record.paused_with, note=stage.at_rung(step))
                self.end(RunningTrial(stage, spec, record.number), report, "stopped", None)

    def end(self, running: RunningTrial, report: Report, state: Ended, value: float | None) -> None:
        """Note how a trial ended, in its study after its result is on disk."""
        spec, policy = running.spec, running.stage.policy
        if state == "failed" or report.note == BY_REQUEST:
            policy.fail(spec.key)
        else:
            policy.end(spec.key)
        spec.write_result(report, state)
        self._tracker.end(report.key, state, _small_artifact(spec))
        running.stage.source.tell(running.number, state, value, report.note)
        self._board.end(report, state, value)
        spec.files.delete_checkpoints()

    def take_over_all(self, stages: Sequence[Stage]) -> None:
        """Take over all trials of these stages."""
        for stage in stages:
            for record in stage.source.records():
                self.take_over(stage, record)

    def take_over(self, stage: Stage, record: Record) -> None:
        """Take over a trial of an earlier driver, which may have died between any two of its writes.

        A trial that has ended ends for everyone, and a trial that pauses does so under this driver. A trial that is
        still to run is adopted when the study proposes it again; until then only its losses at rungs count.
        """
        try:
            spec = stage.spec(record)
        except ValidationError:  # the values do not go together, or the driver died before it had drawn all of them
            if record.state == "failed":
                self._board.add_unbuilt(stage, record)
            return
        if record.is_open:
            record = _settled(stage, spec, record)
        stage.policy.begin(spec.key, spec.config.method.kind)
        stage.policy.remember(spec.key, record.reports, _last_verdict(record))
        if record.state == "failed" or record.stopped_by is not None:
            stage.policy.fail(spec.key)
        if record.state == "running":
            return
        note = stage.at_rung(record.last_step) if record.state == "paused" else record.note
        self._board.add_left(stage, spec, record, note)
        self._track(stage, spec)
        points = {step: {spec.loss_at(step): loss} for step, loss in record.reports.items()}
        if (result := spec.files.result()) is not None:
            points.setdefault(result["step"], {}).update(result["metrics"])
        for step, metrics in points.items():
            self._tracker.log(spec.key, step, metrics)
        if record.state == "paused":
            self._tracker.pause(spec.key)
            return
        self._tracker.end(spec.key, record.state, _small_artifact(spec))
        spec.files.delete_checkpoints()

    def _track(self, stage: Stage, spec: TrialSpec, *, is_new: bool = False) -> None:
        """Open the trial's run in the tracker: its parameters under the names that they have in the sweep file."""
        params = {**spec.config.by_key(), "replicate": spec.replicate}
        tags = {"arm": stage.arm.name, "stage": stage.name, "replicate": str(spec.replicate)}
        tags = {f"prefixray.{name}": value for name, value in tags.items()}
        self._tracker.trial(spec.key, params, tags, is_new=is_new)


def _settled(stage: Stage, spec: TrialSpec, record: Record) -> Record:
    """End a trial in its study where its result is on disk, or where a request stops it; the trial's record."""
    if record.stopped_by is not None and spec.files.result() is None:
        metrics = {**record.paused_with, **spec.files.costs()}
        spec.write_result(Report(spec.key, record.last_step, "stopped", metrics, note=BY_REQUEST), "stopped")
    result = spec.files.result()
    if result is None:
        return record
    value = result["metrics"][BEST_LOSS] if result["state"] == "done" else None
    stage.source.tell(record.number, result["state"], value, result["note"])
    return stage.record(record.number)


def _last_verdict(record: Record) -> Verdict | None:
    """What was decided at the last step that a trial has reported."""
    if record.state == "paused":
        return "pause"
    return "continue" if record.resumed_from == record.last_step else None


def _small_artifact(spec: TrialSpec) -> Path | None:
    """The artifact that the tracker gets a copy of: none for a whole fine-tuned model."""
    folder = spec.files.artifact
    return folder if folder.is_dir() and not spec.config.method.has_own_model else None
