"""The study of an arm's runs in the final stage: a fixed list, run once in order."""

from collections.abc import Collection, Sequence

from optuna.trial import FrozenTrial, Trial, TrialState

from prefixray.search.storage import Storage
from prefixray.search.trial_source import Proposal, Record, TrialSource, started_trials
from prefixray.system.records import Scalar


class FixedStudy(TrialSource):
    """A list of runs, each under the name of an item; a later driver's list may be longer.

    A run that has ended and whose result is lost runs once more. Of several runs of an item the newest counts.
    """

    def __init__(
        self, storage: Storage, sweep: str, name: str, items: Sequence[str], *, without_result: Collection[str] = ()
    ) -> None:
        """`without_result` are the items of which no result is on disk."""
        super().__init__(storage, f"{sweep}/{name}")
        self._items = list(dict.fromkeys(items))
        ended = (trial for trial in self._newest().values() if trial.state.is_finished())
        self._lost = {trial.number for trial in ended if trial.user_attrs["item"] in without_result}

    def ask(self) -> Proposal | None:
        """As `TrialSource` says, in the order of the list; `values` is {"item": name}.

        A run that an earlier driver had running is adopted where the list has its item.
        """
        for frozen in self._running_orphans():
            if frozen.user_attrs["item"] in self._items:
                self._orphans.remove(frozen.number)
                return Proposal(frozen.number, self._values(frozen), adopted=True)
        started = self._newest()
        item = next((item for item in self._items if item not in started or started[item].number in self._lost), None)
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
        """The runs of the list that have started; runs that only an earlier list has, and lost ones, are left out."""
        newest = {trial.number for trial in self._newest().values()} - self._lost
        return [
            record for record in super().records() if record.number in newest and record.values["item"] in self._items
        ]

    def withdraw(self) -> None:
        """Hide runs that an earlier driver had running and that the list has no more: another configuration has won."""
        for frozen in self._running_orphans():
            if frozen.user_attrs["item"] not in self._items:
                self._orphans.remove(frozen.number)
                self._hide(Trial(self._study, frozen._trial_id))

    def _newest(self) -> dict[str, FrozenTrial]:
        """The newest run of each item that has started."""
        return {trial.user_attrs["item"]: trial for trial in started_trials(self._study)}

    def _values(self, trial: FrozenTrial) -> dict[str, Scalar]:
        return {"item": trial.user_attrs["item"]}
