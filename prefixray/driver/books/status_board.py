"""What the live view shows of a sweep: a row for each trial that has begun, how far the searches are, the time left.

The coordinator writes down here what happens to trials. Drawing a picture changes nothing.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from prefixray.driver.stage import Stage
from prefixray.search.status import Row, View
from prefixray.search.study import ArmStudy
from prefixray.search.trial_source import Proposal, Record
from prefixray.system.records import Scalar
from prefixray.trial import LOSS, Ended, Report, TrialSpec, WorkerStatus


class StatusBoard:
    """The rows of all trials that have begun, and what the workers say."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages  # others may join
        self._rows: dict[str, Row] = {}  # by the trial's key
        self._statuses: Sequence[WorkerStatus] = ()
        self._started_at, self._steps_at_start = time.monotonic(), 0

    def num_begun(self, stage: Stage) -> int:
        """How many trials of a stage have begun."""
        return sum(row.arm == stage.name for row in self._rows.values())

    def num_paused(self, stage: Stage) -> int:
        """How many trials of a stage pause, or were resumed and have not begun again."""
        return sum(row.arm == stage.name and row.state == "paused" for row in self._rows.values())

    def begin(self, stage: Stage, spec: TrialSpec, proposal: Proposal) -> None:
        """Show a trial that starts, or goes on after a pause."""
        row = self._rows.get(spec.key)
        if row is None:
            step = max(spec.files.checkpoint_steps(), default=0) if proposal.adopted else 0
            self._steps_at_start += step  # they were taken at an earlier driver's pace
            row = replace(_row(stage, spec, proposal), step=step)
        self._rows[spec.key] = replace(row, state="running", note=None, adopted=proposal.adopted)

    def add_left(self, stage: Stage, spec: TrialSpec, record: Record, note: str | None) -> None:
        """Show a trial that ended or paused under an earlier driver; its steps were not taken at this driver's pace."""
        if spec.key not in self._rows:
            self._steps_at_start += record.last_step
        score = record.reports.get(record.last_step) if record.state == "paused" else record.value
        step, is_sampled = record.last_step, spec.loss_at(record.last_step) != LOSS
        row = replace(_row(stage, spec, record), step=step, score=score, is_sampled=is_sampled)
        self._rows[spec.key] = replace(row, state=record.state, note=note)

    def add_unbuilt(self, stage: Stage, record: Record) -> None:
        """Show a trial that has failed because its values do not go together."""
        num_steps = stage.arm.num_steps
        row = Row(stage.name, record.number, record.values, 0, num_steps, None, "failed", record.note)
        self._rows[row.name] = row

    def report(self, report: Report) -> None:
        """Show a trial's newest dev loss."""
        row = self._rows[report.key]
        is_sampled = LOSS not in report.metrics
        self._rows[report.key] = replace(row, step=report.step, score=report.loss, is_sampled=is_sampled)

    def note_workers(self, statuses: Sequence[WorkerStatus], running: Collection[str]) -> None:
        """Take over what workers say of their speed, their memory and the steps of the trials that run."""
        self._statuses = statuses
        for status in statuses:
            for key, step in status.steps.items():
                if key in running:
                    self._rows[key] = replace(self._rows[key], step=max(step, self._rows[key].step))

    def pause(self, key: str, note: str) -> None:
        """Show that a trial pauses; its last dev loss stands."""
        self._rows[key] = replace(self._rows[key], state="paused", note=note)

    def end(self, report: Report, state: Ended, value: float | None) -> None:
        """Show how a trial ended; without a value its last dev loss stands."""
        row = self._rows[report.key]
        row = row if value is None else replace(row, score=value, is_sampled=False)
        self._rows[report.key] = replace(row, state=state, note=report.note, step=max(report.step, row.step))

    def view(self, title: str, stage: str, *, num_slots: int, is_running: bool) -> View:
        """A picture of all rows; where no trial runs, the workers' speed is 0."""
        searches = [stage for stage in self._stages if isinstance(stage.source, ArmStudy)]
        return View(
            title=title,
            stage=stage,
            rows=tuple(self._rows.values()),
            budget="; ".join(map(self._budget_text, searches)),
            tokens_per_second=sum(status.tokens_per_second for status in self._statuses) if is_running else 0.0,
            workers=self._workers_text(num_slots),
            seconds_left=self._seconds_left(),
        )

    def _budget_text(self, stage: Stage) -> str:
        num_wanted = stage.source.num_wanted()  # a request may have changed it
        return f"{stage.name} {self.num_begun(stage)} of {num_wanted} trials, {stage.concurrency} at once"

    def _workers_text(self, num_slots: int) -> str:
        """The workers that have answered."""
        memory = sum(status.memory_bytes for status in self._statuses)
        used = f", {memory / 2**30:.1f} GiB" if memory else ""
        return f"{len(self._statuses)} workers x {num_slots} slots{used}" if self._statuses else ""

    def _seconds_left(self) -> float | None:
        """Time for the steps that are expected to come, at this driver's pace so far; None before its first step."""
        num_expected = sum(
            stage.source.num_wanted() * stage.policy.expected_steps(stage.arm.num_steps) for stage in self._stages
        )
        num_done = sum(row.step for row in self._rows.values())
        if num_done == self._steps_at_start:
            return None
        steps_per_second = (num_done - self._steps_at_start) / (time.monotonic() - self._started_at)
        return max(0.0, num_expected - num_done) / steps_per_second


def _row(stage: Stage, spec: TrialSpec, trial: Proposal | Record) -> Row:
    """A running trial without a report."""
    is_final_run = "item" in trial.values
    values: Mapping[str, Scalar] = {"seed": spec.replicate} if is_final_run else trial.values
    own_name = spec.key if is_final_run else None
    return Row(stage.name, trial.number, values, 0, spec.config.num_steps, None, "running", own_name=own_name)
