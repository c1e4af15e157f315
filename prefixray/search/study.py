"""The study of an arm's search: which configuration is tried next.

First come the configurations that the sweep file names, then those that a seeded sampler proposes, each once. Where the
space is small enough to be listed, its last points are drawn from the list; a grid search draws all of them from there.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from prefixray.config.schema import ArmConfig, SamplerName, SweepConfig
from prefixray.config.seeds import derive_seed
from prefixray.config.space import LARGEST_GRID, LogUniform, Uniform, configurations
from prefixray.errors import UserError
from prefixray.results.record import SearchTrial, Stored
from prefixray.search.importance import parameter_importance
from prefixray.search.policies.choice import evaluated, rules_of
from prefixray.search.sampling.evidence import evidence_of
from prefixray.search.sampling.parameters import identity_of, parameter_name, suggest, values_by_key
from prefixray.search.sampling.samplers import class_name, make_sampler
from prefixray.search.sampling.warm_start import KnownTrial, best_first
from prefixray.search.storage import Storage
from prefixray.search.trial_source import (
    HIDDEN,
    Proposal,
    Record,
    TrialSource,
    read_trials,
    record_of,
    resumed_from,
    started_trials,
    state_of,
)
from prefixray.system.records import Scalar

_ADDED = "added_by"  # user attribute: the request that added a trial
_BUDGET = "budget"  # user attribute of a study: the number of trials after requests
_KNOWN = "warm_start"  # user attribute of a study: another sweep's trials, as they were when the search began
_AUTO = "first_auto"  # user attribute of a study: the measured points with which the search began
_NUM_DRAWS = 4  # duplicates of the sampler's, after which a new point is drawn at random
_MOST_DRAWS = 100  # duplicates in a row, after which a space too large to be listed counts as tried


class ArmStudy(TrialSource):
    """The search of one arm."""

    def __init__(
        self,
        storage: Storage,
        sweep: str,
        arm: ArmConfig,
        *,
        seed: int,
        num_startup: int,
        sampler: SamplerName = "tpe",
        read_known: Callable[[], Sequence[KnownTrial]] = tuple,
        auto: Sequence[Mapping[str, Scalar]] = (),
    ) -> None:
        """`read_known` gives another sweep's trials that fit the arm; a study reads them once and keeps them.

        `auto` are starting points for `first: auto`, which an earlier driver's, perhaps of another version, replace.
        """
        super().__init__(storage, f"{sweep}/{arm.name}")
        self._arm = arm
        self._sampler: SamplerName = sampler
        self._seed = seed
        self._num_startup = num_startup
        self._grid = _list_grid(arm)
        recorded = {"name": class_name(sampler), "optuna": optuna.__version__, "num_startup": num_startup}
        if self._study.user_attrs.get("sampler") != recorded:
            self._study.set_user_attr("sampler", recorded)
        self._budget: dict[str, Any] = self._study.user_attrs.get(_BUDGET, {})
        self._identities = {trial.number: identity_of(self._values(trial)) for trial in started_trials(self._study)}
        self._known = self._keep_known(read_known)
        self._evidence = evidence_of(arm, self._known)
        self._enqueue_first(auto)

    def ask(self) -> Proposal | None:
        """As `TrialSource` says; None when `num_wanted()` trials have started, or every point of the space has."""
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
            random_draw = num_draws >= _NUM_DRAWS or self._sampler == "grid"
            if random_draw and untried and not self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                self._enqueue_one_of(untried)
            proposal = self._propose(self._study.ask(), random_draw=random_draw)
            if proposal is not None:
                return proposal
            num_draws += 1
        return None

    def num_wanted(self) -> int:
        """As many as are asked for, and no more than the space has points."""
        return int(min(self._num_asked(), self.size()))

    def size(self) -> float:
        """The number of points in the space; infinite where they are not listed."""
        return math.inf if self._grid is None else len(self._grid)

    def extend(self, num_trials: int, request: str) -> None:
        """Want so many more trials; the same request again changes nothing."""
        self._set_budget(self._num_asked() + num_trials, request)

    def close(self, request: str) -> None:
        """Want no more trials than have started; the same request again changes nothing."""
        self._set_budget(len(started_trials(self._study)), request)

    def add(self, values: Mapping[str, Scalar], request: str) -> int:
        """Queue a configuration as one more trial and return its number; the same request again changes nothing.

        Trials that are queued before this trial will run too, also where the search was closed meanwhile.

        Raises `UserError` where a trial has these values already.
        """
        number = self._number_added_by(request)
        if number is None:
            distributions = {key: self._arm.distribution(key, values) for key in values}
            floats = {key for key, found in distributions.items() if isinstance(found, Uniform | LogUniform)}
            exact = {key: float(value) if key in floats else value for key, value in values.items()}  # type: ignore[arg-type]
            self._refuse_known(exact)
            self._enqueue(exact, user_attrs={_ADDED: request})
            number = self._number_added_by(request)
        assert number is not None, "it was just queued"
        queued = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        num_started_then = len(started_trials(self._study)) + len(queued)  # once this trial has started
        self._set_budget(max(self._num_asked() + 1, num_started_then), request)
        return number

    def drop(self, number: int, request: str) -> bool:
        """Take a trial back that is queued; whether it was. The same request again changes nothing.

        A trial that a request had added leaves the budget too.
        """
        trial = next((trial for trial in self._study.get_trials(deepcopy=False) if trial.number == number), None)
        if trial is None or trial.state is not TrialState.WAITING:
            return trial is not None and trial.user_attrs.get(HIDDEN) == request
        if _ADDED in trial.user_attrs:
            self.extend(-1, request)
        self._study._storage.set_trial_user_attr(trial._trial_id, HIDDEN, request)
        self._study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
        return True

    def _num_asked(self) -> int:
        """The sweep file's `num_trials` with the changes by requests; a file that is raised later counts again."""
        asked = int(self._budget.get("num_trials", self._arm.num_trials))
        return max(asked, self._arm.num_trials) if self._arm.num_trials > self._budget.get("file", 0) else asked

    def _set_budget(self, num_trials: int, request: str) -> None:
        """Want so many trials from now on; the same request again changes nothing."""
        if self._budget.get("request") != request:
            self._budget = {"num_trials": num_trials, "file": self._arm.num_trials, "request": request}
            self._study.set_user_attr(_BUDGET, self._budget)

    def _number_added_by(self, request: str) -> int | None:
        trials = self._study.get_trials(deepcopy=False)
        return next((trial.number for trial in trials if trial.user_attrs.get(_ADDED) == request), None)

    def _refuse_known(self, values: Mapping[str, Scalar]) -> None:
        for trial in self._study.get_trials(deepcopy=False):
            is_queued = trial.state is TrialState.WAITING
            trial_values = self._queued_values(trial) if is_queued else self._values(trial)
            if HIDDEN not in trial.user_attrs and identity_of(trial_values) == identity_of(values):
                state = "queued" if is_queued else state_of(trial)
                name = f"{self._arm.name}/{trial.number}"
                raise UserError(f"add: {name} has these values already ({state}); change one of them")

    def _propose(self, trial: Trial, *, adopted: bool = False, random_draw: bool = False) -> Proposal | None:
        """Draw a trial's values that are missing; where an earlier trial has the same values, hide it: None."""
        seed = derive_seed(self._seed, 0, f"sampler/{self._arm.name}/{trial.number}") % 2**32
        pausing = any(state_of(started) == "paused" for started in started_trials(self._study))
        sampler = make_sampler(
            self._sampler, seed=seed, num_startup=self._num_startup, evidence=self._evidence, pausing=pausing
        )
        self._study.sampler = RandomSampler(seed=seed) if random_draw else sampler
        values: dict[str, Scalar] = {}
        for key in self._arm.dimensions:
            if (distribution := self._arm.distribution(key, values)) is not None:
                values[key] = suggest(trial, parameter_name(self._arm, key, distribution), distribution)
        if identity_of(values) in self._tried(before=trial.number):
            self._hide(trial)
            self._identities.pop(trial.number, None)
            return None
        self._identities[trial.number] = identity_of(values)
        return Proposal(trial.number, values, adopted, resumed_from(trial) if adopted else None)

    def _tried(self, before: float = math.inf) -> set[str]:
        return {identity for number, identity in self._identities.items() if number < before}

    def _untried(self) -> list[dict[str, Scalar]] | None:
        """The points of a listed space that no trial has; None where the space is not listed."""
        if self._grid is None:
            return None
        tried = self._tried()
        return [point for key, point in self._grid.items() if key not in tried]

    def _values(self, trial: FrozenTrial) -> dict[str, Scalar]:
        return values_by_key(self._arm, trial.params)

    def _queued_values(self, trial: FrozenTrial) -> dict[str, Scalar]:
        return values_by_key(self._arm, trial.system_attrs.get("fixed_params", {}))

    def _enqueue(self, values: Mapping[str, Scalar], user_attrs: Mapping[str, str] | None = None) -> None:
        named = {}
        for key, value in values.items():
            distribution = self._arm.distribution(key, values)
            assert distribution is not None, f"{key} is searched beside the other values"
            named[parameter_name(self._arm, key, distribution)] = value
        self._study.enqueue_trial(named, user_attrs=dict(user_attrs or {}))

    def _enqueue_one_of(self, points: Sequence[dict[str, Scalar]]) -> None:
        number = len(self._study.get_trials(deepcopy=False))
        rng = random.Random(derive_seed(self._seed, 0, f"untried/{self._arm.name}/{number}"))
        self._enqueue(rng.choice(points))

    def _keep_known(self, read_known: Callable[[], Sequence[KnownTrial]]) -> list[KnownTrial]:
        """What another sweep knew when this search began: the same for all drivers, whatever becomes of that sweep."""
        known: list[KnownTrial] | None = self._study.user_attrs.get(_KNOWN)
        if known is None:
            known = list(read_known())
            self._study.set_user_attr(_KNOWN, known)
        return known

    def _enqueue_first(self, auto: Sequence[Mapping[str, Scalar]]) -> None:
        """Queue what is to be tried first, but for what an earlier driver has queued.

        First come the sweep file's `first` configurations, or measured ones, then the best ones of another sweep.
        """
        auto = self._study.user_attrs.get(_AUTO, auto)
        if auto and _AUTO not in self._study.user_attrs:
            self._study.set_user_attr(_AUTO, [dict(point) for point in auto])
        given = [trial for trial in self._study.get_trials(deepcopy=False) if "fixed_params" in trial.system_attrs]
        queued = {identity_of(self._queued_values(trial)) for trial in given}
        for values in (*self._arm.first, *auto, *best_first(self._known, self._arm.num_trials)):
            if identity_of(values) not in queued:
                queued.add(identity_of(values))
                self._enqueue(values)


def search_so_far(storage: Storage, config: SweepConfig) -> Stored:
    """The record of the search as it stands; nothing is written, and a driver may write meanwhile."""
    rules = rules_of(config)
    found = [parameter_importance(storage, config.name, arm, rules.rungs) for arm in config.arms]
    return Stored(
        search=search_trials(storage, config),
        policy=rules.policy,
        rungs=list(rules.rungs),
        keep=rules.keep,
        dev_sample=rules.dev_sample,
        importance=[importance for importance in found if importance is not None],
    )


def search_trials(storage: Storage, config: SweepConfig) -> list[SearchTrial]:
    """The trials of every arm's search so far; nothing is written, and a driver may write meanwhile."""
    return [
        search_trial(config, arm, record_of(trial, values_by_key(arm, trial.params)))
        for arm in config.arms
        for trial in read_trials(storage, f"{config.name}/{arm.name}")
    ]


def search_trial(config: SweepConfig, arm: ArmConfig, record: Record) -> SearchTrial:
    """A trial of the search as the sweep's record holds it."""
    last, rules = record.last_step, rules_of(config)
    at_rung = record.state in ("stopped", "paused") and record.stopped_by is None and last in rules.rungs
    rung = rules.rungs.index(last) + 1 if at_rung else None
    value = record.reports.get(last) if record.is_open else record.value
    found = SearchTrial(
        arm=arm.name,
        number=record.number,
        config=dict(record.values),
        step=last,
        num_steps=arm.num_steps,
        dev_loss=value,
        state=record.state,
        rung=rung,
        curve=sorted(record.reports.items()),
    )
    if record.pauses:
        found["pauses"] = list(record.pauses)
    shares = evaluated(arm, rules)
    if value is not None and shares.get(last, 1.0) < 1:
        found["is_sampled"] = True
    if record.values.get("objective", arm.fixed.get("objective", arm.train.objective)) == "distill":
        found["is_divergence"] = True
    return found


def _list_grid(arm: ArmConfig) -> dict[str, dict[str, Scalar]] | None:
    """All points of the arm's space, by identity; None where they are too many."""
    if math.prod(dimension.size() for dimension in arm.dimensions.values()) > LARGEST_GRID:
        return None
    return {identity_of(point): point for point in configurations(arm.dimensions, arm.fixed)}
