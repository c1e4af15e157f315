"""A sweep and its results as Python objects, for a notebook, also while the sweep runs.

>>> from prefixray import open_sweep
>>> sweep = open_sweep("quickstart")
>>> sweep.trials.sort_values("dev_loss")
>>> sweep.best["prefix"]
>>> optuna.visualization.plot_slice(sweep.study("prefix"))
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from prefixray.config.files.found import find_sweep
from prefixray.config.identity import stored_config
from prefixray.config.schema import SweepConfig
from prefixray.errors import UserError
from prefixray.reporting.tables import trial_rows
from prefixray.results.record import ArmResult, Results, SearchTrial, Stored, is_finished, load_results, tuned_arms
from prefixray.search.storage import Storage, open_storage
from prefixray.search.study import search_so_far, search_trials
from prefixray.search.trial_source import Study, copied_study

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped, unused-ignore]

_JOURNAL = "study.journal"


@dataclass(frozen=True)
class Sweep:
    """A sweep's configuration and its results, as far as it has come."""

    folder: Path
    config: SweepConfig
    """The configuration of the last run, overrides included."""
    results: Stored
    """`results.json`, with the trials that have begun since; `prefixray.results` has its types."""

    def __repr__(self) -> str:
        count = len(self.results["search"])
        stage = "finished" if is_finished(self.results) else "no final stage yet"
        return f"<Sweep: {self.folder}, {count} trials, {stage}; it has .trials, .best, .results and .study(ARM)>"

    @cached_property
    def trials(self) -> "DataFrame":
        """A row per trial of the search: arm, number, the searched values, step, dev_loss, state, rung."""
        from pandas import DataFrame

        return DataFrame(trial_rows(self.results["search"]))

    @property
    def best(self) -> Mapping[str, Mapping[str, object]]:
        """Each arm's searched values: those of the final stage's winner, or before it those of the lowest dev loss."""
        results = self.results
        if is_finished(results):
            return {arm["arm"]: self._searched_values(arm) for arm in tuned_arms(results)}
        done = [(loss, t) for t in results["search"] if t["state"] == "done" and (loss := t["dev_loss"]) is not None]
        return {trial["arm"]: trial["config"] for _, trial in sorted(done, key=lambda entry: -entry[0])}

    def study(self, arm: str) -> Study:
        """A copy of the Optuna study of an arm's search, in memory; `optuna.visualization` draws it.

        The values are dev losses, a stopped trial is a pruned one. What is done to the copy does not reach the sweep.
        Raises `UserError` for an arm that was not searched.
        """
        searched = [one.name for one in self.config.arms if one.dimensions]
        if arm not in searched:
            raise UserError(f"{arm}: no arm that was searched; they are {', '.join(searched) or 'none'}")
        journal = self.folder / _JOURNAL
        if not journal.is_file():
            raise UserError(f"{journal}: no such file; the sweep has started no trial yet, or was copied without it")
        return copied_study(open_storage(journal), f"{self.config.name}/{arm}")

    def _searched_values(self, arm: ArmResult) -> dict[str, object]:
        method = arm["config"]["method"]
        assert isinstance(method, dict), "a configuration names its method"
        values = {**arm["config"], **method}
        return {key: values[key] for key in self.config.arm(arm["arm"]).dimensions if key in values}


def open_sweep(where: Path | str) -> Sweep:
    """A sweep by its results folder, its name under runs/, or its YAML.

    Raises `UserError` where there are no results and no trials (yet).
    """
    folder = find_sweep(where)
    return Sweep(folder, stored_config(folder), record_so_far(folder))


def record_so_far(folder: Path) -> Stored:
    """A sweep's record; before its final stage, what its trials have reported by now, also while a driver runs.

    Where trials have begun since a final stage, the record has them, and a note says that its table does without them.
    Raises `UserError` where there are no results and no trials (yet).
    """
    journal = folder / _JOURNAL
    stored = load_results(folder) if (folder / "results.json").is_file() else None
    if not journal.is_file():
        return load_results(folder) if stored is None else stored
    storage, config = open_storage(journal), stored_config(folder)
    if stored is not None and is_finished(stored):
        return _with_further_trials(stored, storage, config)
    return search_so_far(storage, config)


def _with_further_trials(results: Results, storage: Storage, config: SweepConfig) -> Results:
    """The results with the search as it is now; the same results where no trial has begun or gone on since."""
    known = set(map(_stage, results["search"]))
    num_further = sum(_stage(trial) not in known for trial in search_trials(storage, config))
    if not num_further:
        return results
    now = search_so_far(storage, config)
    trials = "1 trial has" if num_further == 1 else f"{num_further} trials have"
    note = f"{trials} begun or gone on since this table was made; the sweep's command makes it anew when it ends"
    newer = results.copy()
    newer["search"], newer["importance"] = now["search"], now["importance"]
    newer["notes"] = [note, *results.get("notes", ())]
    return newer


def _stage(trial: SearchTrial) -> tuple[object, ...]:
    """Which trial it is, and how far it has come."""
    return trial["arm"], trial["number"], trial["step"], trial["state"]
