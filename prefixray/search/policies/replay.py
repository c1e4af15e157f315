"""A search replayed by a policy over dev-loss curves: who comes how far, at what work, with what regret.

As many trials as there are seats train at once, a step each in turn; those that reach a rung together are judged
together. Nothing is trained, and time does not pass.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from prefixray.search.policies.contract import Policy


@dataclass(frozen=True)
class Curve:
    """The dev losses of one configuration by step, infinite where they are not finite."""

    losses: Mapping[int, float]
    kind: str = ""  # trials of one kind learn alike
    sample: Mapping[int, float] = field(default_factory=dict)  # over a sample of dev, at steps where it is known

    @property
    def last(self) -> float:
        """The loss at the end of the schedule."""
        return self.losses[self.num_steps]

    @property
    def num_steps(self) -> int:
        """The steps of the schedule."""
        return max(self.losses)


@dataclass
class Search:
    """One replayed search: its trials, the work so far, and how the regret fell.

    Work is counted in steps of one trial; an evaluation on all of dev counts as `evaluation` steps. At all rungs but
    the last trials are evaluated on the share `dev_sample` of dev: where all curves have losses over a sample there,
    these are compared; else those over all of dev, as if they had the same order. The best trial is the one with the
    lowest loss of those that have come furthest; regret is how far its loss at the end of the schedule lies above the
    lowest there is.
    """

    curves: Sequence[Curve]
    policy: Policy
    evaluation: float
    dev_sample: float = 1.0
    steps: list[int] = field(default_factory=list)  # of each trial that has started
    seated: list[int] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)
    num_taken_up: int = 0
    work: float = 0.0
    regrets: list[tuple[float, float]] = field(default_factory=list)  # work, and the regret from there on

    def run(self, num_seats: int) -> None:
        """Replay it to its end."""
        while self._fill(num_seats):
            num_steps = min(map(self._steps_left, self.seated))
            arrived: dict[int, list[int]] = {}
            for trial in self.seated:
                self.steps[trial] += num_steps
                self.work += num_steps
                if self.steps[trial] in self.policy.rungs or self._is_done(trial):
                    arrived.setdefault(self.steps[trial], []).append(trial)
                    self.work += self.evaluation * (self.dev_sample if self._takes_sample(self.steps[trial]) else 1.0)
            for step, trials in arrived.items():
                self._judge(step, trials)

    def final_regret(self) -> float:
        """The regret at the end."""
        return self.regrets[-1][1]

    def work_until(self, target: float) -> float:
        """The work after which the regret stayed within the target; infinite where it never was."""
        since = math.inf
        for work, regret in self.regrets:
            since = min(since, work) if regret <= target else math.inf
        return since

    def num_ended(self) -> int:
        """How many trials came to their ends."""
        return sum(self._is_done(trial) and trial not in self.failed for trial in range(len(self.steps)))

    def num_reached(self, step: int) -> int:
        """How many trials came to a step."""
        return sum(reached >= step for reached in self.steps)

    def kept_the_best(self) -> bool:
        """Whether the very best configuration has come to its end."""
        best = min(range(len(self.curves)), key=lambda trial: self.curves[trial].last)
        return best < len(self.steps) and self._is_done(best)

    def _fill(self, num_seats: int) -> bool:
        while len(self.seated) < num_seats:
            again = self.policy.take_up(more_come=self._more_come())
            if again is not None:
                self.seated.append(int(again))
                self.num_taken_up += 1
            elif self._more_come():
                trial = len(self.steps)
                self.policy.begin(str(trial), self.curves[trial].kind)
                self.seated.append(trial)
                self.steps.append(0)
            else:
                break
        return bool(self.seated)

    def _more_come(self) -> bool:
        return len(self.steps) < len(self.curves)

    def _judge(self, step: int, trials: Sequence[int]) -> None:
        finite = {str(trial): loss for trial in trials if math.isfinite(loss := self._loss(trial, step))}
        for trial in trials:
            if str(trial) not in finite:
                self.failed.add(trial)
                self.policy.fail(str(trial))
                self.seated.remove(trial)
            elif self._is_done(trial) or self._verdict(trial, step, finite) != "continue":
                self.seated.remove(trial)
        best = self._best()
        regret = math.inf if best is None else self.curves[best].last - min(curve.last for curve in self.curves)
        self.regrets.append((self.work, regret))

    def _verdict(self, trial: int, step: int, losses: Mapping[str, float]) -> str:
        return self.policy.judge(str(trial), step, losses, more_come=self._more_come())

    def _best(self) -> int | None:
        """The best trial of those that have come furthest; None where none has come to a rung."""
        ends = {trial: self._judged_at(trial) for trial in range(len(self.steps)) if trial not in self.failed}
        most = max(ends.values(), default=0)
        furthest = [trial for trial, end in ends.items() if end == most > 0]
        return min(furthest, key=lambda trial: self._loss(trial, most), default=None)

    def _loss(self, trial: int, step: int) -> float:
        """The loss by which trials are compared at a step."""
        curve = self.curves[trial]
        return curve.sample[step] if step in self._compared_by_sample else curve.losses[step]

    def _takes_sample(self, step: int) -> bool:
        return step in self.policy.rungs[:-1] and step < self.curves[0].num_steps

    @cached_property
    def _compared_by_sample(self) -> set[int]:
        """The rungs at which all curves have losses over a sample."""
        rungs = {rung for rung in self.policy.rungs if self.dev_sample < 1 and self._takes_sample(rung)}
        return rungs.intersection(*(curve.sample for curve in self.curves))

    def _judged_at(self, trial: int) -> int:
        """The last step at which the trial was evaluated; 0 before its first rung."""
        steps = (0, *self.policy.rungs, self.curves[trial].num_steps)
        return max(step for step in steps if step <= self.steps[trial])

    def _steps_left(self, trial: int) -> int:
        """Steps until the trial's next rung, or its end."""
        ends = (*self.policy.rungs, self.curves[trial].num_steps)
        return min(end for end in ends if end > self.steps[trial]) - self.steps[trial]

    def _is_done(self, trial: int) -> bool:
        return self.steps[trial] == self.curves[trial].num_steps
