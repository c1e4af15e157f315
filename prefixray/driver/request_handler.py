"""What requests from outside do to a search: stop, resume, add, extend, finish.

Each request has an ID, under which the studies record its effect: a request that is executed again, because its driver
died before it could answer, changes nothing more.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol, assert_never

from prefixray.config.arms import read_configuration
from prefixray.driver.stage import Stage
from prefixray.errors import UserError
from prefixray.search.requests import Add, Extend, Finish, Request, Resume, Stop
from prefixray.search.status import State
from prefixray.search.study import ArmStudy
from prefixray.search.trial_source import Record
from prefixray.system.yaml_document import Document, suggestion


class Trials(Protocol):
    """What a request may do to the trials of the stages. The coordinator is this; it imports this module."""

    def is_over(self) -> bool:
        """Whether Tune was told that no trial comes any more; until then a search may be extended."""

    def is_searching(self) -> bool:
        """Whether a trial of a search runs or may start."""

    def running(self) -> Sequence[str]:
        """The keys of the trials that run."""

    def halt(self, stage: Stage, record: Record, request_id: str) -> None:
        """Stop a trial that has not ended."""

    def resume(self, stage: Stage, record: Record, request_id: str) -> bool:
        """Let a paused trial go on; whether under this driver."""

    def reopen(self, stage: Stage) -> str | None:
        """Let a stage that had nothing more to start go on; the run for which it waits, None where it goes on now."""


class RequestHandler:
    """Executes requests on the searches among some stages."""

    def __init__(self, stages: Sequence[Stage], trials: Trials) -> None:
        self._trials = trials
        searches = [(stage, stage.source) for stage in stages if isinstance(stage.source, ArmStudy)]
        self._searches: Mapping[str, tuple[Stage, ArmStudy]] = {stage.arm.name: (stage, s) for stage, s in searches}

    def execute(self, request_id: str, request: Request) -> str | None:
        """Execute a request and return its answer; None leaves the request for a later search.

        Raises `UserError` where the request cannot be executed.
        """
        match request:
            case Stop():
                return self._stop(request.trial, request_id)
            case Resume():
                return self._resume(request.trial, request_id)
            case Add() | Extend() if self._trials.is_over() or not self._searches:
                return None
            case Add():
                return self._add(request, request_id)
            case Extend():
                arms = list(self._searches) if request.arm is None else [request.arm]
                return "; ".join(self._extend(arm, request.num_trials, request_id) for arm in arms)
            case Finish():
                return self._finish(request_id, let_run=request.let_run)
            case _:
                assert_never(request)

    def _stop(self, key: str, request_id: str) -> str:
        stage_name, _, number = key.rpartition("/")
        for stage, study in self._searches.values():
            if stage_name == stage.name and number.isdecimal() and study.drop(int(number), request_id):
                return f"{key} is taken back from the queue: {_budget_text(study)}"
        return self._stop_started(*self._started("stop", key), request_id)

    def _started(self, verb: str, key: str) -> tuple[Stage, Record]:
        """The trial of a search that a request names."""
        for stage, study in self._searches.values():
            for record in study.records():
                if key == f"{stage.name}/{record.number}":
                    return stage, record
        searches = {stage.name for stage, _ in self._searches.values()}
        running = sorted(self._trials.running())
        of_searches = [name for name in running if name.rpartition("/")[0] in searches]
        hint = f"running are {', '.join(of_searches) or 'none'}"
        if key in running:  # beside the searches of other arms
            hint = "it is a run of the final stage, which needs all its runs"
        elif not searches:
            hint = "the search is over, and the final stage needs all its runs"
        raise UserError(f"{verb} {key}: no such trial of a search ({hint})")

    def _stop_started(self, stage: Stage, record: Record, request_id: str) -> str:
        key = f"{stage.name}/{record.number}"
        if record.is_open:
            self._trials.halt(stage, record, request_id)
        elif record.stopped_by != request_id:
            why = record.state + (f": {record.note}" if record.note else "")
            raise UserError(f"stop {key}: has ended already ({why})")
        last_step = record.last_step
        loss = f" with a dev loss of {record.reports[last_step]:.3f} at step {last_step}" if last_step else ""
        return f"{key} is stopped{loss}"

    def _resume(self, key: str, request_id: str) -> str:
        stage, record = self._started("resume", key)
        if record.state != "paused" and record.resumed_by != request_id:
            raise UserError(f"resume {key}: does not pause ({record.state}{f': {record.note}' if record.note else ''})")
        if record.state != "paused" or self._trials.resume(stage, record, request_id):
            return f"{key} goes on from step {record.last_step}"
        return f"{key} goes on with the next run of the sweep, since this one starts no more trials"

    def _add(self, request: Add, request_id: str) -> str:
        stage, study = self._search(request.arm)
        values = Document(f"control/{request_id}.json", json.dumps(dict(request.values), ensure_ascii=False))
        number = study.add(read_configuration(values, stage.arm), request_id)
        return f"{stage.name}/{number} is queued{self._reopen(stage)}: {_budget_text(study)}"

    def _extend(self, arm: str, num_trials: int, request_id: str) -> str:
        stage, study = self._search(arm)
        study.extend(num_trials, request_id)
        return f"{stage.name} is extended{self._reopen(stage)}: {_budget_text(study)}"

    def _finish(self, request_id: str, *, let_run: bool) -> str:
        """Close every search, unless an arm would be left without a score."""
        if not self._trials.is_searching():
            raise UserError("finish: the search is over already; the final stage is running")
        unscored = [
            arm
            for arm, (_, study) in self._searches.items()
            if _awaits_first_score(study) and not (let_run and any(record.is_open for record in study.records()))
        ]
        if unscored:
            arms = ", ".join(unscored)
            raise UserError(f"finish: {arms}: has no dev loss yet that the final stage needs; wait for one")
        for _, study in self._searches.values():
            study.close(request_id)
        if let_run:
            return "no trial starts any more, and those that have started go on; then comes the final stage"
        stopped = Counter[State]()
        for stage, study in self._searches.values():
            for record in study.records():
                if record.is_open:
                    self._trials.halt(stage, record, request_id)
                    stopped[record.state] += 1
        paused = f", {stopped['paused']} paused ones end" if stopped["paused"] else ""
        said = f"{stopped['running']} running trials are stopped{paused}"
        return f"the search ends with what it has; {said}; then comes the final stage"

    def _reopen(self, stage: Stage) -> str:
        """Let a search go on; the words for the answer where this driver starts no more trials."""
        awaited = "a run of the sweep without this search.stop_when" if stage.enough() else self._trials.reopen(stage)
        return "" if awaited is None else f" for {awaited}"

    def _search(self, arm: str) -> tuple[Stage, ArmStudy]:
        if arm not in self._searches:
            hint = suggestion(arm, self._searches, what="the searches are")
            raise UserError(f"--arm {arm}: nothing is searched there{hint}")
        return self._searches[arm]


def _awaits_first_score(study: ArmStudy) -> bool:
    """Whether no trial has a score yet, and one may still come."""
    records = study.records()
    to_come = len(records) < study.num_wanted() or any(record.state == "running" for record in records)
    return to_come and not any(record.reports and record.state != "failed" for record in records)


def _budget_text(study: ArmStudy) -> str:
    """How far a search is, for an answer."""
    num_started, num_wanted = len(study.records()), study.num_wanted()
    all_there_are = ", all that its space has" if num_wanted == study.size() else ""
    return f"{num_started} of {num_wanted} trials started{all_there_are}"
