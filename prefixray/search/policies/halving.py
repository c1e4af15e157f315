"""Asynchronous successive halving (Li et al. 2020, section 3) in two forms: by stopping, and by promotion.

A trial passes a rung if its dev loss is among the best share `keep` of all trials of its arm that have reached the rung
so far. By stopping, another trial ends there at once, though worse ones may pass the rung later or have passed it
before. By promotion it pauses, and resumes once it is among the best of the rung's trials.

Promotion compares trials of one kind at all rungs but the last: prefixes through a network start worse than flat ones
and end level or ahead. The share is rounded. As long as new trials are still to begin, none passes a rung before three
that compete have reached it, and then three fifths of the share: a trial that leads among few may be average among
many, and a paused one can resume later. In the end two of those that compete pass at least, since what is close at a
rung may end the other way round (docs/measurements/policies.md).
"""

import math
from collections.abc import Sequence

from prefixray.search.policies.contract import Policy, Verdict


class Halving(Policy):
    """Halving by stopping."""

    def __init__(self, rungs: Sequence[int] = (), keep: float = 1.0) -> None:
        super().__init__(rungs)
        self._keep = keep

    def expected_steps(self, num_steps: int) -> float:
        """Steps that a trial takes on average, when the share `keep` goes on at every rung."""
        starts, ends = [0, *self.rungs], [*self.rungs, num_steps]
        return sum(self._keep**i * (end - start) for i, (start, end) in enumerate(zip(starts, ends, strict=True)))

    def _decide(self, trial: str, rung: int, *, more_come: bool) -> Verdict:
        scores = self._scores[rung]
        num_kept = max(1, math.ceil(self._keep * len(scores)))
        return "continue" if sorted(scores.values()).index(scores[trial]) < num_kept else "stop"


class Promotion(Halving):
    """Halving by promotion."""

    may_pause = True
    _fewest = 3  # trials that compete at a rung, from which on one of them passes while others are to begin
    _early = 0.6  # of the share that passes in the end, what passes while others are to begin
    _least = 2  # trials that pass a rung at least, of those that compete, once none is to begin

    def _decide(self, trial: str, rung: int, *, more_come: bool) -> Verdict:
        return "continue" if trial in self._best(rung, more_come=more_come) else "pause"

    def _choose(self, *, more_come: bool) -> str | None:
        return self._risen(self.rungs, more_come=more_come)

    def _risen(self, rungs: Sequence[int], *, more_come: bool) -> str | None:
        """The best trial of the highest of these rungs at which one that pauses is among the best share by now."""
        for rung in reversed(rungs):
            for trial in self._best(rung, more_come=more_come):
                if self._paused.get(trial) == rung:
                    return trial
        return None

    def _best(self, rung: int, *, more_come: bool) -> list[str]:
        """The trials that are the best share of a rung, at the last rung of all and else of each kind.

        The best come first, of equal ones the earlier.
        """
        scores, by_kind = self._scores[rung], dict[str, list[str]]()
        for trial in sorted(scores, key=scores.__getitem__):
            by_kind.setdefault("" if rung == self.rungs[-1] else self._kinds.get(trial, ""), []).append(trial)
        fewest, least, keep = self._fewest, 1, self._early * self._keep
        if not more_come:
            fewest, least, keep = 1, self._least, self._keep
        best = [
            trial
            for trials in by_kind.values()
            if len(trials) >= fewest
            for trial in trials[: max(least, math.floor(keep * len(trials) + 0.5))]
        ]
        return sorted(best, key=scores.__getitem__)
