"""Stopping when ranks have settled: PASHA (Bohdal et al. 2023, algorithm 1 and section 4).

It is halving by promotion, but trials climb no higher than a top rung, at first the second one. The top moves up by a
rung whenever it orders its trials otherwise than the rung below does: then longer training still tells them apart.
Trials that lie closer together than the noise may stand in any order. Where no trial is to come, the best one at the
top goes on to the end of the schedule alone; the paper leaves that to a final training.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

from prefixray.search.policies.contract import Verdict
from prefixray.search.policies.halving import Promotion

NOISE_SHARE = 0.9  # of the pairs of trials that keep overtaking each other, so many lie closer than the noise


class Settling(Promotion):
    """Promotion up to the lowest rung at which ranks have settled."""

    _least = 1  # as the paper has it

    def __init__(self, rungs: Sequence[int] = (), keep: float = 1.0) -> None:
        super().__init__(rungs, keep)
        self._top = 1  # the number of rungs below the top one; if that is all, the end of the schedule is the top

    def remember(self, trial: str, losses: Mapping[int, float], verdict: Verdict | None = None) -> None:
        """As `Policy.remember`; the top is no lower than where an earlier driver let two trials go."""
        super().remember(trial, losses, verdict)
        self._top = max([1, *(i for i, rung in enumerate(self.rungs) if len(self._scores[rung]) > 1), self._top])

    def expected_steps(self, num_steps: int) -> float:
        """Steps that a trial takes on average if the top stays where it is at first, without the last climb."""
        first, *others = [*self.rungs, num_steps]
        return first + self._keep * (others[0] - first) if others else float(first)

    def _decide(self, trial: str, rung: int, *, more_come: bool) -> Verdict:
        self._raise_top()
        if rung in self.rungs[: self._top]:
            return super()._decide(trial, rung, more_come=more_come)
        return "continue" if not more_come and trial == self._first(rung) else "pause"

    def _choose(self, *, more_come: bool) -> str | None:
        """The best trial of the highest rung below the top that may climb; else, at the end, the best at the top."""
        risen = self._risen(self.rungs[: self._top], more_come=more_come)
        if risen is not None:
            return risen
        for rung in reversed(self.rungs[self._top :]):
            if not more_come and self._scores[rung] and self._paused.get(first := self._first(rung)) == rung:
                return first
        return None

    def _first(self, rung: int) -> str:
        return min(self._scores[rung], key=self._scores[rung].__getitem__)

    def _raise_top(self) -> None:
        """Move the top up to where it orders its trials as the rung below does."""
        while self._top < len(self.rungs) and not self._is_settled(self._top):
            self._top += 1

    def _is_settled(self, top: int) -> bool:
        """Whether the trial at each place of a rung could stand at this place of the rung below, but for noise."""
        upper, lower = (self._scores[self.rungs[index]] for index in (top, top - 1))
        both = upper.keys() & lower.keys()
        places = zip(sorted(both, key=upper.__getitem__), sorted(both, key=lower.__getitem__), strict=True)
        noise = self._noise(top)
        return all(abs(lower[above] - lower[below]) <= noise for above, below in places)

    def _noise(self, top: int) -> float:
        """How far trials lie apart at a rung that have overtaken each other and fallen back; 0 without any."""
        scores = [self._scores[rung] for rung in self.rungs[: top + 1]]
        apart = []
        for one, other in combinations(set.intersection(*map(set, scores)), 2):
            signs = [at[one] > at[other] for at in scores]
            if sum(a != b for a, b in pairwise(signs)) > 1:
                apart.append(abs(scores[-1][one] - scores[-1][other]))
        return sorted(apart)[math.ceil(NOISE_SHARE * len(apart)) - 1] if apart else 0.0
