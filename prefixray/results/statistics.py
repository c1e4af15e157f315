"""What a difference between arms is worth: bootstrap intervals, a paired randomisation test, Holm's correction.

The unit is a source with all its references. An arm's score is the mean over its seeds of the corpus score.

The bootstrap. A replicate draws sources and, within each arm, seeds. All arms share the drawn sources, so differences
are paired. Runs on subsets of low data are drawn by subset, and all arms share that draw, too: two runs on one subset
are not independent, and an easy subset is easy for every arm. A draw depends only on the sweep's seed, the arm's name
and the purpose of the draw, so an arm's interval does not depend on the other arms.

Few seeds. The mean of k values drawn from k seeds varies by (k - 1) / k too little, so its distance to the mean of all
seeds is multiplied by sqrt(k / (k - 1)). Intervals of few seeds are still too short, as a normal quantile is shorter
than Student's. One seed says nothing about others: the interval is then about the trained models as they are.

The randomisation test is always about the trained models as they are: it swaps their outputs and does not ask for the
outputs of other seeds. So p may be small where the interval of the difference includes 0.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Required, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from prefixray.config.seeds import derive_seed
from prefixray.metrics import Scored

_PERCENTILES = (2.5, 97.5)
_NUM_RESAMPLES = 10_000
_CELLS_AT_ONCE = 2_000_000  # sources x replicates held in memory at once
_TOLERANCE = 1e-9  # a permuted difference this close to the observed one counts as equal

Floats = NDArray[np.float64]  # N sources, S seeds, R replicates


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One arm's score, and how it differs from the reference's (None for the reference itself)."""

    arm: str
    score: Estimate
    difference: Estimate | None
    p: float | None = None
    p_holm: float | None = None


class Draws(TypedDict, total=False):
    """The settings of the random draws."""

    seed: Required[int]
    num_resamples: int  # (10,000)
    num_subsets: int  # of low data (1)
    subsets: Mapping[str, Sequence[int]]  # by arm, the subset that each run was trained on; the floor has none


def compare(
    arms: Mapping[str, Sequence[Scored]], reference: str, no_rivals: Collection[str] = (), **draws: Unpack[Draws]
) -> list[Comparison]:
    """Intervals, differences and p values of the arms by the primary metric, in the order of the arms.

    An arm is given as one Scored per seed. p is two-sided, (1 + k) / (1 + B); `p_holm` is p corrected for the number of
    compared arms. Arms of `no_rivals` get no p.
    """
    without = intervals(arms, reference, **draws)
    rivals = {arm: seeds for arm, seeds in arms.items() if arm not in no_rivals or arm == reference}
    values = _randomisation(rivals, reference, draws)
    corrected = holm(values)
    return [replace(each, p=values.get(each.arm), p_holm=corrected.get(each.arm)) for each in without]


def intervals(arms: Mapping[str, Sequence[Scored]], reference: str, **draws: Unpack[Draws]) -> list[Comparison]:
    """The same as `compare` without p values, for any metric."""
    _check(arms, reference)
    replicates = _bootstrap(arms, draws)
    values = {arm: float(np.mean([each.corpus() for each in scored])) for arm, scored in arms.items()}
    return [
        Comparison(
            arm,
            _estimate(values[arm], replicates[arm]),
            None
            if arm == reference
            else _estimate(values[arm] - values[reference], replicates[arm] - replicates[reference]),
        )
        for arm in arms
    ]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p values corrected for their number (Holm 1979): the chance of any false one below 0.05 is below 0.05."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, arm in enumerate(sorted(p_values, key=lambda each: p_values[each])):
        largest = max(largest, (len(p_values) - rank) * p_values[arm])
        corrected[arm] = min(largest, 1.0)
    return corrected


def ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value, 1 for the lowest; equal values share their mean rank."""
    ordered = sorted(values)
    return [1 + ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


def resolution(low: float, value: float, high: float) -> float:
    """The smallest difference that a comparison with this interval can tell from 0: the interval's longer side."""
    return max(high - value, value - low)


def sd(values: Sequence[float]) -> float | None:
    """The standard deviation over seeds (n - 1); None for one seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def p_text(p: float) -> str:
    """A p value with three digits."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _check(arms: Mapping[str, Sequence[Scored]], reference: str) -> None:
    assert reference in arms, f"no arm is called {reference}; arms are {', '.join(arms)}"
    assert all(arms.values()), "an arm has no seed"
    kinds = {(each.metric, len(each.statistics)) for scored in arms.values() for each in scored}
    assert len(kinds) == 1, f"arms differ in metric or number of sources: {kinds}"


def _bootstrap(arms: Mapping[str, Sequence[Scored]], draws: Draws) -> dict[str, Floats]:
    """Each arm's score in every replicate, (R,) per arm."""
    seed, subsets, num_subsets = draws["seed"], draws.get("subsets", {}), draws.get("num_subsets", 1)
    num_sources = len(next(iter(arms.values()))[0].statistics)
    sources = np.random.default_rng(derive_seed(seed, 0, "bootstrap/sources"))
    seeds = {arm: np.random.default_rng(derive_seed(seed, 0, f"bootstrap/seeds/{arm}")) for arm in arms}
    common = np.random.default_rng(derive_seed(seed, 0, "bootstrap/subsets"))
    parts: dict[str, list[Floats]] = {arm: [] for arm in arms}
    for size in _chunks(draws.get("num_resamples", _NUM_RESAMPLES), num_sources):
        weights = _draw(sources, size, num_sources).astype(np.float64)
        drawn_subsets = _draw(common, size, num_subsets)
        for arm, scored in arms.items():
            scores = np.stack([each.resampled(weights) for each in scored], axis=1)  # (R, S)
            present = sorted(set(subsets.get(arm, ())))
            if len(present) > 1:  # low data; an arm whose runs have failed may lack a subset
                of_subset = [scores[:, np.equal(subsets[arm], subset)].mean(axis=1) for subset in present]
                units, drawn = np.stack(of_subset, axis=1), drawn_subsets[:, present]
            else:
                units, drawn = scores, _draw(seeds[arm], size, len(scored))
            parts[arm].append(scores.mean(axis=1) + _deviation(units, drawn))
    return {arm: np.concatenate(part) for arm, part in parts.items()}


def _deviation(units: Floats, drawn: NDArray[np.int64]) -> Floats:
    """The distance of the drawn units' mean to the mean of all k units (R, k), with the variance of new units."""
    number = units.shape[1]
    centred = units - units.mean(axis=1, keepdims=True)
    away: Floats = (centred * drawn).sum(axis=1) / np.maximum(1, drawn.sum(axis=1))
    return away * math.sqrt(number / (number - 1)) if number > 1 else away


def _draw(generator: np.random.Generator, size: int, number: int) -> NDArray[np.int64]:
    """How often each of `number` things is drawn when `number` are drawn with replacement, (size, number)."""
    drawn = generator.integers(0, number, size=(size, number))
    cells = drawn + number * np.arange(size)[:, None]
    return np.bincount(cells.ravel(), minlength=size * number).reshape(size, number)


def _randomisation(arms: Mapping[str, Sequence[Scored]], reference: str, draws: Draws) -> dict[str, float]:
    """The p of each arm: how often swapping the outputs of random sources gives a difference at least as large.

    A source is swapped with the reference in all seeds at once. Seeds are paired by their index. The arm with fewer
    seeds uses them again, until both lists end together: so each seed counts equally, and the observed difference is
    that of the table.
    """
    num_resamples, num_sources = draws.get("num_resamples", _NUM_RESAMPLES), len(arms[reference][0].statistics)
    exceeding = dict.fromkeys((arm for arm in arms if arm != reference), 0)
    observed = {arm: _swapped_difference(arms[arm], arms[reference], np.zeros((1, num_sources))) for arm in exceeding}
    generator = np.random.default_rng(derive_seed(draws["seed"], 0, "randomisation"))
    for size in _chunks(num_resamples, num_sources):
        swaps = (generator.random((size, num_sources)) < 0.5).astype(np.float64)
        for arm in exceeding:
            permuted = _swapped_difference(arms[arm], arms[reference], swaps)
            exceeding[arm] += int((np.abs(permuted) >= np.abs(observed[arm]) - _TOLERANCE).sum())
    return {arm: (1 + count) / (1 + num_resamples) for arm, count in exceeding.items()}


def _swapped_difference(ours: Sequence[Scored], theirs: Sequence[Scored], swaps: Floats) -> Floats:
    """The difference of mean scores when the sources marked with 1 in a row of `swaps` (R, N) change sides -> (R,)."""
    number = math.lcm(len(ours), len(theirs))
    total = np.zeros(len(swaps))
    for i in range(number):
        our, their = ours[i % len(ours)], theirs[i % len(theirs)]
        moved = swaps @ (their.statistics - our.statistics)  # (R, K)
        total += our.of_sums(our.statistics.sum(axis=0) + moved) - their.of_sums(their.statistics.sum(axis=0) - moved)
    return total / number


def _chunks(num_resamples: int, num_sources: int) -> Iterator[int]:
    """Chunk sizes that add up to the number of resamples; each chunk fits in memory."""
    size = max(1, _CELLS_AT_ONCE // num_sources)
    for start in range(0, num_resamples, size):
        yield min(size, num_resamples - start)


def _estimate(value: float, replicates: Floats) -> Estimate:
    low, high = np.percentile(replicates, _PERCENTILES)
    return Estimate(value, float(low), float(high))
