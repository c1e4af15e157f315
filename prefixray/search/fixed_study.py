"""The study of an arm's runs in the final stage: a fixed list, run once in order."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial, Trial, TrialState

from prefixray.search.storage import Storage
from prefixray.search.trial_source import Proposal, Record, TrialSource, started_trials
from prefixray.system.records import Scalar


class FixedStudy(TrialSource):
    """A list of runs, each under the name of an item; a later driver's list may be longer."""

    def __init__(self, storage: Storage, sweep: str, name: str, items: Sequence[str]) -> None:
        super().__init__(storage, f"{sweep}/{name}")
        self._items = list(dict.fromkeys(items))

    def ask(self) -> Proposal | None:
        """As `TrialSource` says, in the order of the list; `values` is {"item": name}.

        A run that an earlier driver had running is adopted where the list has its item.
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
            self._hide(trial)  # an earlier driver queued this trial, and died before it started
        return Proposal(trial.number, {"item": item}, adopted=False)

    def num_wanted(self) -> int:
        """The length of the list."""
        return len(self._items)

    def records(self) -> list[Record]:
        """The runs of the list that have started; runs that only an earlier list has are left out."""
        return [record for record in super().records() if record.values["item"] in self._items]

    def withdraw(self) -> None:
        """Hide runs that an earlier driver had running and that the list has no more: another configuration has won."""
        for frozen in self._running_orphans():
            if frozen.user_attrs["item"] not in self._items:
                self._orphans.remove(frozen.number)
                self._hide(Trial(self._study, frozen._trial_id))

    def _values(self, trial: FrozenTrial) -> dict[str, Scalar]:
        return {"item": trial.user_attrs["item"]}
