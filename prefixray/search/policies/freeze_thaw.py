"""Freeze-thaw: trials get steps by where their curves are heading (after Swersky, Snoek and Adams 2014).

A curve is taken for a power law with an offset, c + a (t / T)^-b, of which a few exponents b are weighed by how well
they explain the dev losses so far. Given b, the law is linear in c and a: with normal priors the loss at the end of the
schedule is a normal mixture, whose mean and deviation are used. A trial that seems less likely than a new configuration
to become the best one pauses; the likeliest of those that pause is resumed where a slot is free. Where no trial comes
and none runs, a trial with a chance below 1 in twice as many as there are is never resumed.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefixray.search.policies.contract import Policy, Verdict

EXPONENTS = (0.1, 0.3, 0.6, 1.0, 2.0)
NOISE = 0.03  # nats: how far a dev loss lies from its law
_SLOPE = 0.2  # nats: the prior's mean of a; that of c is the arm's lowest loss so far
OFFSET_SPREAD, SLOPE_SPREAD = 0.5, 1.0  # nats: of the priors of c and a

Floats = NDArray[np.float64]


class FreezeThaw(Policy):
    """Every rung is a place to pause, and a point of the curve."""

    may_pause = True

    def __init__(self, rungs: Sequence[int], num_steps: int) -> None:
        """`num_steps` is the last step of a schedule, up to which curves are extrapolated."""
        super().__init__(rungs)
        self._num_steps = num_steps
        self._predicted: dict[tuple[float, ...], tuple[float, float]] = {}  # by the lowest loss and a trial's losses

    def _decide(self, trial: str, rung: int, *, more_come: bool) -> Verdict:
        chances = self._chances()
        return "continue" if chances[trial] >= _least(len(chances), more_come=more_come) else "pause"

    def _choose(self, *, more_come: bool) -> str | None:
        """The paused trial that is the likeliest to become the best."""
        chances = self._chances()
        likeliest = max(self._paused, key=chances.__getitem__)
        return likeliest if chances[likeliest] >= _least(len(chances), more_come=more_come) else None

    def _chances(self) -> dict[str, float]:
        """How likely each trial is to end below the one that promises most among the others."""
        curves: dict[str, dict[int, float]] = {}
        for rung, scores in self._scores.items():
            for trial, loss in scores.items():
                curves.setdefault(trial, {})[rung] = loss
        lowest = min(loss for curve in curves.values() for loss in curve.values())
        ends = {trial: self._end(curve, lowest) for trial, curve in curves.items()}
        first, *others = sorted(ends, key=lambda trial: ends[trial][0])
        if not others:
            return {first: 1.0}
        return {trial: _chance_below(end, ends[others[0] if trial == first else first]) for trial, end in ends.items()}

    def _end(self, curve: Mapping[int, float], lowest: float) -> tuple[float, float]:
        key = (lowest, *(number for point in curve.items() for number in point))
        if key not in self._predicted:
            self._predicted[key] = predicted(curve, self._num_steps, lowest)
        return self._predicted[key]


def _least(num_trials: int, *, more_come: bool) -> float:
    """The chance from which on a trial goes on: that of a new one among them; where none comes, half of 1 in all."""
    return 1 / (num_trials + 1) if more_come else 0.5 / num_trials


def _chance_below(end: tuple[float, float], other: tuple[float, float]) -> float:
    """How likely one normal number, by mean and deviation, is to lie below another."""
    spread = math.hypot(end[1], other[1], 1e-6)
    return 0.5 * math.erfc((end[0] - other[0]) / spread / math.sqrt(2))


def predicted(curve: Mapping[int, float], num_steps: int, lowest: float) -> tuple[float, float]:
    """Mean and deviation of the loss at the last step, from the losses by step; `lowest` is the arm's lowest so far."""
    laws = _laws(tuple(curve), num_steps)
    prior = np.array([lowest, _SLOPE])
    residuals = np.array(list(curve.values())) - laws.designs @ prior  # (E, n)
    means = prior.sum() + (laws.gains * residuals).sum(axis=1)
    weights = -0.5 * (np.einsum("en,enm,em->e", residuals, laws.precisions, residuals) + laws.log_determinants)
    share = np.exp(weights - weights.max())
    share /= share.sum()
    mean = float(share @ means)
    return mean, float(math.sqrt(share @ (laws.variances + (means - mean) ** 2)))


class _Laws(NamedTuple):
    """What the laws of all exponents say of some steps, whatever the losses are. E exponents, n steps."""

    designs: Floats  # (E, n, 2): what c and a count at each step
    gains: Floats  # (E, n): how far the loss at the end follows the loss at each step
    variances: Floats  # (E,): of the loss at the end
    precisions: Floats  # (E, n, n): of the losses before any is known
    log_determinants: Floats  # (E,): of their covariances


@functools.cache
def _laws(steps: tuple[int, ...], num_steps: int) -> _Laws:
    shares = np.array(steps) / num_steps
    designs = np.stack([np.stack([np.ones(len(steps)), shares**-b], axis=1) for b in EXPONENTS])
    prior = np.diag([OFFSET_SPREAD**2, SLOPE_SPREAD**2])
    covariances = np.linalg.inv(np.linalg.inv(prior) + designs.transpose(0, 2, 1) @ designs / NOISE**2)  # (E, 2, 2)
    marginals = designs @ prior @ designs.transpose(0, 2, 1) + NOISE**2 * np.eye(len(steps))
    return _Laws(
        designs=designs,
        gains=(covariances @ designs.transpose(0, 2, 1)).sum(axis=1) / NOISE**2,
        variances=covariances.sum(axis=(1, 2)),
        precisions=np.linalg.inv(marginals),
        log_determinants=np.linalg.slogdet(marginals)[1],
    )
