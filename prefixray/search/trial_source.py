"""A source of trials: it proposes them, is told their losses and their ends, and remembers both across drivers.

Each source is an Optuna study in the sweep's journal, which outlives a killed driver. The next driver adopts the trials
that were running, under their numbers.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, assert_never

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, Trial, TrialState

from prefixray.results.record import Pause
from prefixray.search.status import State
from prefixray.search.storage import Storage
from prefixray.system.records import Scalar

_STATES: Mapping[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}
HIDDEN = "duplicate"  # user attribute of trials that were drawn but will never run
_FAILED = "failed"  # user attribute of failed trials, which are pruned trials to Optuna
_STOP = "stopped_by"  # user attribute: the request that stops a trial
_PAUSED = "paused"  # user attribute: the step of a trial's last pause, its metrics there, and the steps of all
_RESUMED = "resumed"  # user attribute: the last such step from which it went on, the request, and all steps of requests


@dataclass(frozen=True)
class Proposal:
    """A trial to be run."""

    number: int
    values: Mapping[str, Scalar]  # of the keys that are searched, given the others; the other keys keep their defaults
    adopted: bool  # it has run before, under this driver or an earlier one: there may be a checkpoint
    resumed_from: int | None = None  # the step at which it has paused last


@dataclass(frozen=True)
class Record:
    """All that is known of a trial that has started."""

    number: int
    values: Mapping[str, Scalar]
    state: State
    value: float | None  # the dev loss that trials are compared by: a stopped trial's is its last
    reports: Mapping[int, float]  # dev losses by step
    note: str | None  # why the trial failed or was stopped
    stopped_by: str | None = None  # the request that has stopped the trial, or that will
    began: float | None = None  # when it was proposed first, in seconds since 1970
    ended: float | None = None  # when its study was told of its end
    resumed_from: int | None = None  # the step from which the trial was resumed last, after a pause
    resumed_by: str | None = None  # the request that did it
    pauses: tuple[Pause, ...] = ()
    paused_with: Mapping[str, float] = field(default_factory=dict)  # the metrics with which the trial has paused last

    @property
    def is_open(self) -> bool:
        """Whether the trial has not ended: it runs, or pauses."""
        return self.state in ("running", "paused")

    @property
    def last_step(self) -> int:
        """The step of its last dev loss; 0 before the first."""
        return max(self.reports, default=0)


Study: TypeAlias = optuna.Study


def study_in_memory(name: str | None = None) -> Study:
    """A new study that no storage keeps; Optuna tells nobody of it."""
    told = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(told, optuna.logging.WARNING))
    try:
        return optuna.create_study(study_name=name)
    finally:
        optuna.logging.set_verbosity(told)


def copied_study(storage: Storage, name: str) -> Study:
    """A copy of a study in memory, with the same numbers; without trials where there is no such study yet."""
    copy = study_in_memory(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        copy.set_metric_names(["dev/loss"])
    if name in _names(storage):
        copy.add_trials(optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False))
    return copy


def read_trials(storage: Storage, name: str) -> list[FrozenTrial]:
    """The trials of a study that have started; nothing is written, and a driver may write meanwhile."""
    return started_trials(optuna.load_study(study_name=name, storage=storage)) if name in _names(storage) else []


def _names(storage: Storage) -> set[str]:
    return {study.study_name for study in storage.get_all_studies()}


def record_of(trial: FrozenTrial, values: Mapping[str, Scalar]) -> Record:
    """All that is known of a trial that tries these values."""
    state = state_of(trial)
    value = None if state == "failed" else trial.value
    note = trial.user_attrs.get("note")
    began, ended = (None if at is None else at.timestamp() for at in (trial.datetime_start, trial.datetime_complete))
    return Record(
        trial.number,
        values,
        state,
        value,
        reports=dict(trial.intermediate_values),
        note=note,
        stopped_by=trial.user_attrs.get(_STOP),
        began=began,
        ended=ended,
        resumed_from=resumed_from(trial),
        resumed_by=trial.user_attrs.get(_RESUMED, {}).get("request"),
        pauses=pauses_of(trial),
        paused_with=trial.user_attrs.get(_PAUSED, {}).get("metrics", {}),
    )


def started_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that have started: none that is queued or hidden."""
    trials = study.get_trials(deepcopy=False, states=tuple(_STATES))
    return [trial for trial in trials if HIDDEN not in trial.user_attrs]


def state_of(trial: FrozenTrial) -> State:
    """The state of a trial; to Optuna, a failed trial is a pruned one, and a paused trial runs."""
    if trial.state is TrialState.RUNNING and _PAUSED in trial.user_attrs:
        step, resumed = trial.user_attrs[_PAUSED]["step"], trial.user_attrs.get(_RESUMED, {})
        return "running" if resumed.get("step") == step else "paused"
    return "failed" if trial.state is TrialState.PRUNED and _FAILED in trial.user_attrs else _STATES[trial.state]


def resumed_from(trial: FrozenTrial | Trial) -> int | None:
    """The step from which a trial was resumed last, after a pause."""
    resumed = trial.user_attrs.get(_RESUMED)
    return None if resumed is None else int(resumed["step"])


def pauses_of(trial: FrozenTrial) -> tuple[Pause, ...]:
    """All pauses of a trial, in their order."""
    steps, resumed = trial.user_attrs.get(_PAUSED, {}).get("steps", []), trial.user_attrs.get(_RESUMED, {})
    by_hand = resumed.get("by_hand", [])
    return tuple(
        Pause(
            step=step, resumed=None if step > resumed.get("step", 0) else "by hand" if step in by_hand else "by policy"
        )
        for step in steps
    )


class TrialSource(ABC):
    """An Optuna study as a source of trials."""

    def __init__(self, storage: Storage, name: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = storage
        self._study = optuna.create_study(storage=self._storage, study_name=name, load_if_exists=True)
        self._ids: dict[int, int] = {}  # Optuna's, by trial number, since listing all trials takes ever longer
        if self._study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._study.set_metric_names(["dev/loss"])  # optuna-dashboard's default is "Objective 0"
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if HIDDEN in trial.user_attrs:  # a driver died while it hid the trial
                self._study.tell(trial.number, state=TrialState.FAIL)
        self._orphans = [trial.number for trial in started_trials(self._study) if state_of(trial) == "running"]

    @abstractmethod
    def ask(self) -> Proposal | None:
        """The next trial to run; None where none is.

        First come those that an earlier driver had running and paused ones that were resumed, then new ones.
        """

    def report(self, number: int, step: int, value: float) -> None:
        """Store a running trial's dev loss; nothing where it is not finite, is known, or where the trial has ended."""
        frozen = self._frozen(number)
        if frozen.state is TrialState.RUNNING and math.isfinite(value) and step not in frozen.intermediate_values:
            Trial(self._study, frozen._trial_id).report(value, step)

    def tell(
        self, number: int, state: Literal["done", "stopped", "failed"], value: float | None, note: str | None = None
    ) -> None:
        """End a trial; a second call changes nothing. `value` is a done trial's dev loss.

        A done trial without a finite value counts as failed, since Optuna would leave it running for ever.
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
            case "failed":  # Optuna's own failed trials do not keep its samplers from points near them
                trial = Trial(self._study, frozen._trial_id)
                trial.set_user_attr(_FAILED, True)
                trial.set_constraint("has a finite loss", 1.0)
                self._study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
            case _:
                assert_never(state)

    def mark_stopped(self, number: int, request: str) -> None:
        """Note which request stops a running trial, so that the next driver stops it if this driver dies before."""
        Trial(self._study, self._frozen(number)._trial_id).set_user_attr(_STOP, request)

    def pause(self, number: int, step: int, metrics: Mapping[str, float]) -> None:
        """Note that a running trial pauses at this step, where its report has these metrics."""
        frozen = self._frozen(number)
        steps = [*frozen.user_attrs.get(_PAUSED, {}).get("steps", []), step]
        paused = {"step": step, "metrics": dict(metrics), "steps": list(dict.fromkeys(steps))}
        Trial(self._study, frozen._trial_id).set_user_attr(_PAUSED, paused)

    def resume(self, number: int, request: str | None = None) -> None:
        """Have `ask` propose a paused trial again, before any new one."""
        frozen = self._frozen(number)
        assert state_of(frozen) == "paused", f"trial {number} does not pause"
        step = frozen.user_attrs[_PAUSED]["step"]
        by_hand = [*frozen.user_attrs.get(_RESUMED, {}).get("by_hand", []), *([] if request is None else [step])]
        resumed = {"step": step, "request": request, "by_hand": by_hand}
        Trial(self._study, frozen._trial_id).set_user_attr(_RESUMED, resumed)
        self._orphans.append(number)

    @abstractmethod
    def num_wanted(self) -> int:
        """The number of trials in the end."""

    def records(self) -> list[Record]:
        """All trials that have started, by number."""
        return [self._record(trial) for trial in started_trials(self._study)]

    def best(self, k: int) -> list[Record]:
        """The `k` best done trials, lowest value first; where none is done, of the stopped ones first the furthest."""
        records = self.records()
        done = [(0, record) for record in records if record.state == "done"]
        ranked = done or [(-record.last_step, record) for record in records if record.state == "stopped"]
        finite = [(step, record.value, record.number, record) for step, record in ranked if record.value is not None]
        return [record for *_, record in sorted(finite, key=lambda entry: entry[:3])[:k]]

    @abstractmethod
    def _values(self, trial: FrozenTrial) -> dict[str, Scalar]:
        """The values that a trial tries."""

    def _record(self, trial: FrozenTrial) -> Record:
        return record_of(trial, self._values(trial))

    def _frozen(self, number: int) -> FrozenTrial:
        if number not in self._ids:
            self._ids.update({trial.number: trial._trial_id for trial in self._study.get_trials(deepcopy=False)})
        return self._storage.get_trial(self._ids[number])

    def _running_orphans(self) -> Iterator[FrozenTrial]:
        """The trials that an earlier driver had running or that were resumed, neither proposed nor ended yet."""
        for number in list(self._orphans):
            frozen = self._frozen(number)
            if frozen.state is TrialState.RUNNING:
                yield frozen
            else:
                self._orphans.remove(number)

    def num_orphans(self) -> int:
        """The number of trials that have run before and wait to be proposed."""
        return len(list(self._running_orphans()))

    def _hide(self, trial: Trial) -> None:
        """End a trial that will not run, as if it had never been drawn."""
        trial.set_user_attr(HIDDEN, True)
        self._study.tell(trial, state=TrialState.FAIL)
