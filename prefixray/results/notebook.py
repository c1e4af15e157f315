"""A sweep and its results as Python objects, for a notebook.

>>> from prefixray import open_sweep
>>> sweep = open_sweep("quickstart")
>>> sweep.trials.sort_values("dev_loss")
>>> sweep.best["prefix"]
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from prefixray.config.files.found import find_sweep
from prefixray.config.identity import stored_config
from prefixray.config.schema import SweepConfig
from prefixray.results.record import ArmResult, SearchTrial, Stored, is_finished, load_results

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped, unused-ignore]


@dataclass(frozen=True)
class Sweep:
    """A sweep's configuration and its results, as far as it has come."""

    folder: Path
    config: SweepConfig
    """The configuration of the last run, overrides included."""
    results: Stored
    """`results.json`; `prefixray.results` has its types."""

    @cached_property
    def trials(self) -> "DataFrame":
        """A row per trial of the search: arm, number, the searched values, step, dev_loss, state, rung."""
        from pandas import DataFrame

        return DataFrame([_row(trial) for trial in self.results["search"]])

    @property
    def best(self) -> Mapping[str, Mapping[str, object]]:
        """Each arm's searched values: those of the final stage's winner, or before it those of the lowest dev loss."""
        results = self.results
        if is_finished(results):
            return {arm["arm"]: self._searched_values(arm) for arm in results["arms"] if arm["method"] is not None}
        done = [(loss, t) for t in results["search"] if t["state"] == "done" and (loss := t["dev_loss"]) is not None]
        return {trial["arm"]: trial["config"] for _, trial in sorted(done, key=lambda entry: -entry[0])}

    def _searched_values(self, arm: ArmResult) -> dict[str, object]:
        method = arm["config"]["method"]
        assert isinstance(method, dict), "a configuration names its method"
        values = {**arm["config"], **method}
        return {key: values[key] for key in self.config.arm(arm["arm"]).dimensions if key in values}


def open_sweep(where: Path | str) -> Sweep:
    """A sweep by its results folder, its name under runs/, or its YAML.

    Raises `UserError` where there are no results (yet).
    """
    folder = find_sweep(where)
    return Sweep(folder, stored_config(folder), load_results(folder))


def _row(trial: SearchTrial) -> dict[str, object]:
    rest = {key: value for key, value in trial.items() if key not in ("arm", "number", "config", "curve")}
    return {"arm": trial["arm"], "number": trial["number"], **trial["config"], **rest}
