"""What a policy is: it decides which trials of an arm get steps.

A policy is pure: dev losses go in, verdicts come out. It has no clock, no lock and no study, so that a simulator can
replay a search with the object that the driver uses.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

Verdict = Literal["continue", "pause", "stop"]


class Policy(ABC):
    """The rungs of one arm, and the trials that have reached them.

    A rung is a step at which a trial waits for a verdict: it passes, it pauses, or it is stopped for good. A paused
    trial may be resumed, from where it stands. `more_come` says whether there are trials that have not started.
    Trials of one kind learn alike (`MethodConfig.kind`): early dev losses tell little between kinds.
    """

    may_pause = False
    """Whether a trial may ever pause: then it keeps a checkpoint at each rung."""

    def __init__(self, rungs: Sequence[int] = ()) -> None:
        """`rungs` are steps, ascending, before the last step of a schedule."""
        self.rungs = tuple(rungs)
        self._scores: dict[int, dict[str, float]] = {rung: {} for rung in self.rungs}  # dev losses, by trial
        self._passed: dict[int, set[str]] = {rung: set() for rung in self.rungs}  # trials that passed
        self._paused: dict[str, int] = {}  # the rung of each trial that pauses
        self._kinds: dict[str, str] = {}  # of each trial that has begun
        self._failed: set[str] = set()

    def begin(self, trial: str, kind: str) -> None:
        """A trial of this kind has begun, now or under an earlier driver."""
        self._kinds[trial] = kind

    def remember(self, trial: str, losses: Mapping[int, float], verdict: Verdict | None = None) -> None:
        """Take over a trial of an earlier driver, from its dev losses by step.

        `verdict` is what was decided at the last of these steps; None where that is not known, or it is no rung.
        """
        last_step = max(losses, default=0)
        for rung in self.rungs:
            if rung in losses:
                self._scores[rung][trial] = losses[rung]
            if rung < last_step or (rung == last_step and verdict == "continue"):
                self._passed[rung].add(trial)
        if verdict == "pause":
            self._paused[trial] = last_step

    def judge(self, trial: str, rung: int, losses: Mapping[str, float], *, more_come: bool = True) -> Verdict:
        """Decide whether a trial goes on from a rung.

        `losses` are the dev losses of all trials that have reached the rung together with this trial, which is one of
        them: all of them count before any is judged, and all are finite. A trial that falls back behind a rung which it
        has passed, for instance to an older checkpoint, is not judged again there.
        """
        if trial in self._passed[rung]:
            return "continue"
        self._scores[rung].update({key: loss for key, loss in losses.items() if key not in self._failed})
        verdict = self._decide(trial, rung, more_come=more_come)
        if verdict == "continue":
            self._passed[rung].add(trial)
        if verdict == "pause":
            self._paused[trial] = rung
        return verdict

    def take_up(self, *, more_come: bool) -> str | None:
        """The paused trial that a free slot goes to, which runs from now on; None where none shall have it now.

        Where no trial runs and none comes, None means that no paused trial is ever resumed.
        """
        trial = self._choose(more_come=more_come) if self._paused else None
        if trial is not None:
            self.resume(trial)
        return trial

    def resume(self, trial: str) -> None:
        """Let a paused trial go on, whatever the policy would say."""
        self._passed[self._paused.pop(trial)].add(trial)

    def end(self, trial: str) -> None:
        """A paused trial has ended: it is never resumed."""
        self._paused.pop(trial, None)

    def fail(self, trial: str) -> None:
        """A trial has failed, or somebody has stopped it, whatever its losses were.

        Where trials may pause, the others compete without it.
        """
        self.end(trial)
        if self.may_pause:
            self._failed.add(trial)
            for scores in self._scores.values():
                scores.pop(trial, None)

    def expected_steps(self, num_steps: int) -> float:
        """Steps that a trial takes on average."""
        return float(num_steps)

    @abstractmethod
    def _decide(self, trial: str, rung: int, *, more_come: bool) -> Verdict:
        """The verdict on a trial whose loss counts at the rung already."""

    def _choose(self, *, more_come: bool) -> str | None:
        """As `take_up`, of which there is no need where no trial pauses; changes nothing."""
        raise NotImplementedError
