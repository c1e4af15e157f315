"""Where trials come from: a study says what to run next, is told what came of it, and remembers both across drivers.

Its state lies in the sweep's journal, which outlives a killed driver: the next driver adopts the trials that ran, under
their own numbers.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, Trial, TrialState

from prefixray.search.storage import open_storage
from prefixray.system.records import Scalar

State = Literal["running", "done", "stopped", "failed"]
_STATES: Mapping[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}
HIDDEN = "duplicate"  # user attribute of trials that were drawn but never run
_FAILED = "failed"  # user attribute of trials that have failed; Optuna has them as pruned
_STOP = "stopped_by"  # user attribute: the request that stops a trial


@dataclass(frozen=True)
class Proposal:
    """A trial to be run."""

    number: int
    values: Mapping[str, Scalar]  # of the searched keys that are active; for the others the default holds
    adopted: bool  # it was running when an earlier driver died: there may be a checkpoint and a run to continue


@dataclass(frozen=True)
class Record:
    """What is known of a trial that was started."""

    number: int
    values: Mapping[str, Scalar]
    state: State
    value: float | None  # what trials are compared by; of a stopped trial the last report
    reports: Mapping[int, float]  # step -> value
    note: str | None  # why it failed or was stopped
    stopped_by: str | None = None  # the request that has stopped it, or still has to


def started_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were started, without those that are queued or were drawn in vain."""
    trials = study.get_trials(deepcopy=False, states=tuple(_STATES))
    return [trial for trial in trials if HIDDEN not in trial.user_attrs]


def state_of(trial: FrozenTrial) -> State:
    """How a trial stands; to Optuna one that has failed is pruned."""
    return "failed" if trial.state is TrialState.PRUNED and _FAILED in trial.user_attrs else _STATES[trial.state]


class TrialSource(ABC):
    """A study: says what to run next, is told what came of it, and remembers both across drivers."""

    def __init__(self, journal: Path, name: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = open_storage(journal)
        self._study = optuna.create_study(storage=self._storage, study_name=name, load_if_exists=True)
        self._ids: dict[int, int] = {}  # of trials by number: listing all trials would take longer the more there are
        if self._study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._study.set_metric_names(["dev/loss"])  # for optuna-dashboard, which would say "Objective 0"
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if HIDDEN in trial.user_attrs:  # its driver died while it hid the trial
                self._study.tell(trial.number, state=TrialState.FAIL)
        self._orphans = [trial.number for trial in started_trials(self._study) if trial.state is TrialState.RUNNING]

    @abstractmethod
    def ask(self) -> Proposal | None:
        """The next trial to run: those left running by an earlier driver, then new ones; None when there is none."""

    def report(self, number: int, step: int, value: float) -> None:
        """Store a value that a running trial has reached; one that is not finite, known or too late is passed over."""
        frozen = self._frozen(number)
        if frozen.state is TrialState.RUNNING and math.isfinite(value) and step not in frozen.intermediate_values:
            Trial(self._study, frozen._trial_id).report(value, step)

    def tell(
        self, number: int, state: Literal["done", "stopped", "failed"], value: float | None, note: str | None = None
    ) -> None:
        """End a trial; again is harmless. `value` is a done trial's, a stopped one has its last report.

        A trial without a finite value is not done but failed, since Optuna would leave it running for ever.
        """
        frozen = self._frozen(number)
        if frozen.state.is_finished():
            return
        if state == "done" and (value is None or not math.isfinite(value)):
            state, note = "failed", note or f"its final value is {value}"
        if note != frozen.user_attrs.get("note"):
            Trial(self._study, frozen._trial_id).set_user_attr("note", note)
        match state:
            case "done":
                self._study.tell(number, value, skip_if_finished=True)
            case "stopped":
                self._study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
            case "failed":  # to a sampler the place of Optuna's own failed trials is unexplored, and it seeks them out
                trial = Trial(self._study, frozen._trial_id)
                trial.set_user_attr(_FAILED, True)
                trial.set_constraint("has a finite loss", 1.0)
                self._study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
            case _:
                assert_never(state)

    def mark_stopped(self, number: int, request: str) -> None:
        """Note that a running trial is to be stopped by a request, for this driver or the next to do."""
        Trial(self._study, self._frozen(number)._trial_id).set_user_attr(_STOP, request)

    @abstractmethod
    def num_wanted(self) -> int:
        """How many trials there are to be in the end."""

    def records(self) -> list[Record]:
        """All trials that were started, by number."""
        return [self._record(trial) for trial in started_trials(self._study)]

    def best(self, k: int) -> list[Record]:
        """The `k` best done trials, lowest value first; stopped ones only where none is done."""
        records = self.records()
        done = [record for record in records if record.state == "done"]
        ranked = done or [record for record in records if record.state == "stopped"]
        finite = [(record.value, record.number, record) for record in ranked if record.value is not None]
        return [record for _, _, record in sorted(finite, key=lambda entry: entry[:2])[:k]]

    @abstractmethod
    def _values(self, trial: FrozenTrial) -> dict[str, Scalar]:
        """What a trial tries."""

    def _record(self, trial: FrozenTrial) -> Record:
        state = state_of(trial)
        value = None if state == "failed" else trial.value
        note = trial.user_attrs.get("note")
        reports, stopped_by = dict(trial.intermediate_values), trial.user_attrs.get(_STOP)
        return Record(trial.number, self._values(trial), state, value, reports, note, stopped_by)

    def _frozen(self, number: int) -> FrozenTrial:
        if number not in self._ids:
            self._ids.update({trial.number: trial._trial_id for trial in self._study.get_trials(deepcopy=False)})
        return self._storage.get_trial(self._ids[number])

    def _running_orphans(self) -> Iterator[FrozenTrial]:
        """The trials of an earlier driver that nobody has adopted or ended yet, by number."""
        for number in list(self._orphans):
            frozen = self._frozen(number)
            if frozen.state is TrialState.RUNNING:
                yield frozen
            else:
                self._orphans.remove(number)

    def num_orphans(self) -> int:
        """How many trials of an earlier driver wait to be adopted."""
        return len(list(self._running_orphans()))

    def _hide(self, trial: Trial) -> None:
        """End a trial that will not run; it counts as never drawn."""
        trial.set_user_attr(HIDDEN, True)
        self._study.tell(trial, state=TrialState.FAIL)
