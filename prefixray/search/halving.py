"""Asynchronous successive halving (Li et al. 2020, section 3): which trials go on from a rung.

A rung is a step at which a trial waits for a verdict. A trial goes on if its dev loss is among the best share `keep` of
all trials of its arm that have reached the rung so far; nobody waits for trials that come later.

This module is pure: dev losses go in, verdicts come out. It has no clock, no lock and no study, so that a simulator can
replay a search.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

Verdict = Literal["continue", "stop"]


class Halving:
    """The rungs of one arm, and the trials that have reached them."""

    def __init__(self, rungs: Sequence[int] = (), keep: float = 1.0) -> None:
        self.rungs = tuple(rungs)  # steps, ascending
        self._keep = keep
        self._scores: dict[int, dict[str, float]] = {rung: {} for rung in self.rungs}  # dev losses, by trial
        self._passed: dict[int, set[str]] = {rung: set() for rung in self.rungs}  # trials that went on

    def remember(self, trial: str, losses: Mapping[int, float]) -> None:
        """Take over a trial of an earlier driver, from its dev losses by step."""
        last_step = max(losses, default=0)
        for rung in self.rungs:
            if rung in losses:
                self._scores[rung][trial] = losses[rung]
            if rung < last_step:
                self._passed[rung].add(trial)

    def judge(self, trial: str, rung: int, losses: Mapping[str, float]) -> Verdict:
        """Decide whether a trial goes on from a rung.

        `losses` are the dev losses of all trials that have reached the rung together with this trial, which is one of
        them: all of them count before any is judged. A trial that falls back behind a rung which it has passed, for
        instance to an older checkpoint, is not judged again there.
        """
        if trial in self._passed[rung]:
            return "continue"
        scores = self._scores[rung]
        scores.update(losses)
        num_kept = max(1, math.ceil(self._keep * len(scores)))
        if sorted(scores.values()).index(scores[trial]) >= num_kept:
            return "stop"
        self._passed[rung].add(trial)
        return "continue"

    def expected_steps(self, num_steps: int) -> float:
        """Steps that a trial takes on average, when the share `keep` goes on at every rung."""
        starts, ends = [0, *self.rungs], [*self.rungs, num_steps]
        return sum(self._keep**i * (end - start) for i, (start, end) in enumerate(zip(starts, ends, strict=True)))
