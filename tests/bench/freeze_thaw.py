"""Freeze-thaw: trials get steps by where their curves are heading (after Swersky, Snoek and Adams 2014).

A curve is taken for a power law with an offset, c + a (t / T)^-b, of which a few exponents b are weighed by how well
they explain the dev losses so far. Given b, the law is linear in c and a: with normal priors the loss at the end of the
schedule is a normal mixture, whose mean and deviation are used. A trial that seems less likely than a new configuration
to become the best one pauses; the likeliest of those that pause is taken up where a seat is free.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from prefixray.search.policies.contract import Policy, Verdict

EXPONENTS = (0.1, 0.3, 0.6, 1.0, 2.0)
NOISE = 0.03  # nats: how far a dev loss lies from its law
OFFSET_SPREAD, SLOPE_SPREAD = 0.5, 1.0  # nats: of the priors of c and a


class FreezeThaw(Policy):
    """Every rung is a place to pause."""

    def __init__(self, rungs: Sequence[int], num_steps: int) -> None:
        super().__init__(rungs)
        self._num_steps = num_steps
        self._predicted: dict[tuple[float, ...], tuple[float, float]] = {}  # by the lowest loss and a trial's losses

    may_pause = True

    def fail(self, trial: str) -> None:
        """As `Policy.fail`; the others compete without it."""
        super().fail(trial)
        for scores in self._scores.values():
            scores.pop(trial, None)

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
    """The chance at which a trial is as likely the best as a new one; half of the mean one where none comes."""
    return 1 / (num_trials + 1) if more_come else 0.5 / num_trials


def _chance_below(end: tuple[float, float], other: tuple[float, float]) -> float:
    """How likely one normal number, by mean and deviation, is to lie below another."""
    spread = math.hypot(end[1], other[1], 1e-6)
    return 0.5 * math.erfc((end[0] - other[0]) / spread / math.sqrt(2))


def predicted(curve: Mapping[int, float], num_steps: int, lowest: float) -> tuple[float, float]:
    """Mean and deviation of the loss at the last step, from the losses by step; `lowest` is the arm's lowest so far."""
    steps, losses = np.array(list(curve)), np.array(list(curve.values()))
    prior_mean = np.array([lowest, 0.2])
    prior_precision = np.diag([OFFSET_SPREAD**-2, SLOPE_SPREAD**-2])
    weights, means, variances = [], [], []
    for exponent in EXPONENTS:
        design = np.stack([np.ones(len(steps)), (steps / num_steps) ** -exponent], axis=1)
        covariance = np.linalg.inv(prior_precision + design.T @ design / NOISE**2)
        posterior = covariance @ (prior_precision @ prior_mean + design.T @ losses / NOISE**2)
        residual = losses - design @ prior_mean
        marginal = design @ np.linalg.inv(prior_precision) @ design.T + NOISE**2 * np.eye(len(steps))
        _, log_determinant = np.linalg.slogdet(marginal)
        weights.append(-0.5 * (residual @ np.linalg.solve(marginal, residual) + log_determinant))
        means.append(posterior.sum())
        variances.append(covariance.sum())
    share = np.exp(np.array(weights) - max(weights))
    share /= share.sum()
    mean = float(share @ means)
    return mean, float(math.sqrt(share @ (np.array(variances) + (np.array(means) - mean) ** 2)))
