"""The Optuna studies of a sweep: the source of truth on what was tried; one per arm, and one per arm's final runs.

All lie in one journal file, `SWEEP/study.journal`, which outlives a killed driver: trials that were running when it
died are adopted by the next one under their own number. One driver at a time opens it, under the sweep's lock.
"""

import graphlib
import json
import math
import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from prefixray.config.schema import ArmConfig
from prefixray.config.space import AnyDimension, Choice, Int, LogUniform, Uniform
from prefixray.errors import UserError
from prefixray.system.records import Scalar
from prefixray.system.seeds import derive_seed

State = Literal["running", "done", "stopped", "failed"]
_STATES: Mapping[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}
_HIDDEN = "duplicate"  # user attribute of trials that were drawn but never run
_ADDED = "added_by"  # user attribute: the request that a trial was added by
_FAILED = "failed"  # user attribute of trials that have failed, which are pruned ones to Optuna
_STOP = "stopped_by"  # user attribute: the request that stops a trial
_BUDGET = "budget"  # user attribute of a study: what requests have made of num_trials
_NUM_DRAWS = 4  # the sampler's duplicates before a new point is chosen at random
_MOST_DRAWS = 100  # duplicates in a row after which a space too large to list has nothing new
_LARGEST_GRID = 10_000  # points of a space that is listed


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


def repair_journal(path: Path) -> None:
    """Mend what a killed driver left: a half-written last line and a lock. The caller holds the sweep's own lock."""
    if not path.exists():
        return
    journal = path.read_bytes()
    end = journal.rfind(b"\n") + 1
    if end < len(journal):
        with path.open("r+b") as file:
            file.truncate(end)
    for stale in path.parent.glob(f"{path.name}.lock*"):
        stale.unlink()


def open_storage(journal: Path) -> JournalStorage:
    """The storage of all studies of a sweep."""
    # The default lock is a link to the journal's path as given, and spins for ever on a relative one.
    lock = JournalFileOpenLock(str(journal))
    return JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))


def started_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were started, without those that are queued or were drawn in vain."""
    trials = study.get_trials(deepcopy=False, states=tuple(_STATES))
    return [trial for trial in trials if _HIDDEN not in trial.user_attrs]


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
            if _HIDDEN in trial.user_attrs:  # its driver died while it hid the trial
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
        trial.set_user_attr(_HIDDEN, True)
        self._study.tell(trial, state=TrialState.FAIL)


class ArmStudy(TrialSource):
    """The search of one arm: what is to be tried first, then a seeded TPE's proposals, each configuration once."""

    def __init__(self, journal: Path, sweep: str, arm: ArmConfig, *, seed: int, num_startup: int) -> None:
        super().__init__(journal, f"{sweep}/{arm.name}")
        self._arm = arm
        self._seed = seed
        self._num_startup = num_startup
        conditions = {key: [other for other in d.when if other in arm.dimensions] for key, d in arm.dimensions.items()}
        self._order = tuple(graphlib.TopologicalSorter(conditions).static_order())
        self._grid = self._list_grid()
        sampler = {"name": "TPESampler", "optuna": optuna.__version__, "num_startup": num_startup}
        if self._study.user_attrs.get("sampler") != sampler:
            self._study.set_user_attr("sampler", sampler)
        self._budget: dict[str, Any] = self._study.user_attrs.get(_BUDGET, {})
        self._identities = {trial.number: _identity(self._values(trial)) for trial in started_trials(self._study)}
        self._enqueue_first()

    def ask(self) -> Proposal | None:
        """As TrialSource says; None when there are `num_wanted()` trials, or every point of the space was tried."""
        for frozen in self._running_orphans():
            self._orphans.remove(frozen.number)
            proposal = self._propose(Trial(self._study, frozen._trial_id), adopted=True)
            if proposal is not None:
                return proposal
        num_draws = 0
        while len(started_trials(self._study)) < self.num_wanted() and num_draws < _MOST_DRAWS:
            untried = self._untried()
            if untried is not None and not untried:
                return None
            random_draw = num_draws >= _NUM_DRAWS
            if random_draw and untried and not self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                self._enqueue_one_of(untried)
            proposal = self._propose(self._study.ask(), random_draw=random_draw)
            if proposal is not None:
                return proposal
            num_draws += 1
        return None

    def num_wanted(self) -> int:
        """The file's `num_trials`, or what requests have made of it; a file that is raised later counts again."""
        wanted = int(self._budget.get("num_trials", self._arm.num_trials))
        if self._arm.num_trials > self._budget.get("file", 0):
            wanted = max(wanted, self._arm.num_trials)
        return int(min(wanted, self.size()))

    def size(self) -> float:
        """How many configurations there are; infinite where they are not listed."""
        return math.inf if self._grid is None else len(self._grid)

    def extend(self, num_trials: int, request: str) -> None:
        """Ask for so many trials more; the same request again changes nothing."""
        if self._budget.get("request") != request:
            self._set_budget(self.num_wanted() + num_trials, request)

    def close(self, request: str) -> None:
        """Ask for no trial that was not started yet; the same request again changes nothing."""
        if self._budget.get("request") != request:
            self._set_budget(len(started_trials(self._study)), request)

    def add(self, values: Mapping[str, Scalar], request: str) -> int:
        """Queue a configuration as one trial more and return its number; the same request again changes nothing.

        What waits before it, as after an end that was asked for, will run as well.

        Raises `UserError` where a trial has these values already.
        """
        dimensions = self._arm.dimensions
        floats = {key for key in values if isinstance(dimensions[key], Uniform | LogUniform)}
        exact = {key: float(value) if key in floats else value for key, value in values.items()}  # type: ignore[arg-type]
        number = self._number_added_by(request)
        if number is None:
            self._refuse_known(exact)
            self._study.enqueue_trial(exact, user_attrs={_ADDED: request})
            number = self._number_added_by(request)
        assert number is not None, "it was just queued"
        if self._budget.get("request") != request:
            queued = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))  # they come before it
            room = len(started_trials(self._study)) + len(queued)
            self._set_budget(max(self.num_wanted() + 1, room), request)
        return number

    def drop(self, number: int, request: str) -> bool:
        """Take a queued configuration back, one that was added with its place in the budget; whether it was queued.

        The same request again changes nothing.
        """
        trial = next((trial for trial in self._study.get_trials(deepcopy=False) if trial.number == number), None)
        if trial is None or trial.state is not TrialState.WAITING:
            return trial is not None and trial.user_attrs.get(_HIDDEN) == request
        if _ADDED in trial.user_attrs:
            self.extend(-1, request)
        self._study._storage.set_trial_user_attr(trial._trial_id, _HIDDEN, request)
        self._study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
        return True

    def _set_budget(self, num_trials: int, request: str) -> None:
        self._budget = {"num_trials": num_trials, "file": self._arm.num_trials, "request": request}
        self._study.set_user_attr(_BUDGET, self._budget)

    def _number_added_by(self, request: str) -> int | None:
        trials = self._study.get_trials(deepcopy=False)
        return next((trial.number for trial in trials if trial.user_attrs.get(_ADDED) == request), None)

    def _refuse_known(self, values: Mapping[str, Scalar]) -> None:
        for trial in self._study.get_trials(deepcopy=False):
            waits = trial.state is TrialState.WAITING
            known = trial.system_attrs.get("fixed_params", {}) if waits else self._values(trial)
            if _HIDDEN not in trial.user_attrs and _identity(known) == _identity(values):
                state = "queued" if waits else state_of(trial)
                name = f"{self._arm.name}/{trial.number}"
                raise UserError(f"add: {name} has these values already ({state}); change one of them")

    def _propose(self, trial: Trial, *, adopted: bool = False, random_draw: bool = False) -> Proposal | None:
        """Complete a trial's values; if an earlier trial has the same, hide it and return None."""
        # Seeded by the trial, since a sampler of one seed would repeat its first proposals after a relaunch.
        seed = derive_seed(self._seed, 0, f"sampler/{self._arm.name}/{trial.number}") % 2**32
        tpe = TPESampler(n_startup_trials=self._num_startup, seed=seed)
        self._study.sampler = RandomSampler(seed=seed) if random_draw else tpe
        values: dict[str, Scalar] = {}
        for key in self._order:
            if self._arm.is_searched(key, values):
                values[key] = _suggest(trial, key, self._arm.dimensions[key])
        if _identity(values) in self._tried(before=trial.number):
            self._hide(trial)
            self._identities.pop(trial.number, None)
            return None
        self._identities[trial.number] = _identity(values)
        return Proposal(trial.number, values, adopted)

    def _tried(self, before: float = math.inf) -> set[str]:
        return {identity for number, identity in self._identities.items() if number < before}

    def _untried(self) -> list[dict[str, Scalar]] | None:
        """The points of a listed space that no trial has; None for a space that is not listed."""
        if self._grid is None:
            return None
        tried = self._tried()
        return [point for key, point in self._grid.items() if key not in tried]

    def _values(self, trial: FrozenTrial) -> dict[str, Scalar]:
        return {key: trial.params[key] for key in self._order if key in trial.params}

    def _enqueue_one_of(self, points: Sequence[dict[str, Scalar]]) -> None:
        number = len(self._study.get_trials(deepcopy=False))
        rng = random.Random(derive_seed(self._seed, 0, f"untried/{self._arm.name}/{number}"))
        self._study.enqueue_trial(rng.choice(points))

    def _enqueue_first(self) -> None:
        """Queue what is to be tried first and never was queued; the list may have grown since the last driver."""
        known = [trial.system_attrs.get("fixed_params") for trial in self._study.get_trials(deepcopy=False)]
        queued = {_identity(values) for values in known if values is not None}
        for values in self._arm.first:
            if _identity(values) not in queued:
                queued.add(_identity(values))
                self._study.enqueue_trial(dict(values))

    def _list_grid(self) -> dict[str, dict[str, Scalar]] | None:
        """All points of the space by identity; None if it is infinite or large."""
        if math.prod(dimension.size() for dimension in self._arm.dimensions.values()) > _LARGEST_GRID:
            return None
        points: list[dict[str, Scalar]] = [{}]
        for key in self._order:
            ends = _members(self._arm.dimensions[key])
            points = [
                extended
                for point in points
                for extended in (
                    [{**point, key: end} for end in ends] if self._arm.is_searched(key, point) else [point]
                )
            ]
        return {_identity(point): point for point in points}


class FixedStudy(TrialSource):
    """A list of runs, each named by a key; the list may grow."""

    def __init__(self, journal: Path, sweep: str, name: str, items: Sequence[str]) -> None:
        super().__init__(journal, f"{sweep}/{name}")
        self._items = list(dict.fromkeys(items))

    def ask(self) -> Proposal | None:
        """As TrialSource says, in the order of the list; `values` is {"item": key}.

        What an earlier driver left running is adopted once its key is in the list.
        """
        for frozen in self._running_orphans():
            if frozen.user_attrs["item"] in self._items:
                self._orphans.remove(frozen.number)
                return Proposal(frozen.number, self._values(frozen), adopted=True)
        started = {trial.user_attrs["item"] for trial in started_trials(self._study)}
        item = next((item for item in self._items if item not in started), None)
        if item is None:
            return None
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if not any(trial.user_attrs.get("item") == item for trial in waiting):
            self._study.enqueue_trial({}, user_attrs={"item": item})
        while (trial := self._study.ask()).user_attrs["item"] != item:
            self._hide(trial)  # queued by a driver that died before it started it
        return Proposal(trial.number, {"item": item}, adopted=False)

    def num_wanted(self) -> int:
        """The length of the list."""
        return len(self._items)

    def records(self) -> list[Record]:
        """The runs of the list that were started; those of an earlier list are history."""
        return [record for record in super().records() if record.values["item"] in self._items]

    def withdraw(self) -> None:
        """End what an earlier driver left running and no list of this one holds (another configuration has won)."""
        for frozen in self._running_orphans():
            if frozen.user_attrs["item"] not in self._items:
                self._orphans.remove(frozen.number)
                self._hide(Trial(self._study, frozen._trial_id))

    def _values(self, trial: FrozenTrial) -> dict[str, Scalar]:
        return {"item": trial.user_attrs["item"]}


def _suggest(trial: Trial, key: str, dimension: AnyDimension) -> Scalar:
    match dimension:
        case Choice():
            return trial.suggest_categorical(key, dimension.choice)
        case Uniform():
            return float(trial.suggest_float(key, *dimension.uniform))
        case LogUniform():
            return float(trial.suggest_float(key, *dimension.log_uniform, log=True))
        case Int():
            return int(trial.suggest_int(key, *dimension.int_))
        case _:
            assert_never(dimension)


def _members(dimension: AnyDimension) -> Sequence[Scalar]:
    """The values of a finite dimension."""
    return range(dimension.int_[0], dimension.int_[1] + 1) if isinstance(dimension, Int) else dimension.ends()


def _identity(values: Mapping[str, Scalar]) -> str:
    """The same text for the same values, whatever their order."""
    return json.dumps(dict(values), sort_keys=True)
