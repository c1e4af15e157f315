"""Notes of a sweep about its own space: where it was too narrow, too wide, or no space at all.

A search finds the best values of its space alone. So a reader has to know which arm had nothing to choose from, which
winner stands at an end of what it could choose, and with which values most trials were lost.
"""

import math
from collections.abc import Mapping, Sequence

from prefixray.config.schema import ArmConfig
from prefixray.config.space import AnyDistribution, Choice, LogUniform, is_among, is_number
from prefixray.results.record import SearchTrial, of_one_loss
from prefixray.system.records import Scalar

_EDGE = 0.05  # of a range's width, on its own scale: a value so near to an end is at that end
_FEWEST_NUMBERS = 3  # of a choice; the winner among two is always at an end
_FEWEST_TRIALS = 3  # with a value, of which most have to be lost for a note
_LOST = 2.0  # times the lowest dev loss: a trial that ended above it has diverged
_LOST_NATS = 1.0  # above the lowest divergence from a teacher, which may be near 0: likewise


def space_notes(
    arms: Sequence[ArmConfig], winners: Mapping[str, Mapping[str, Scalar]], search: Sequence[SearchTrial]
) -> list[str]:
    """The notes on the arms of the final table; `winners` has the searched values of each arm's winner."""
    in_table = [arm for arm in arms if arm.name in winners]
    notes = [note for arm in in_table for note in edge_notes(arm, winners[arm.name])]
    for alike in of_one_loss(search):
        losses = [loss for trial in alike if (loss := trial["dev_loss"]) is not None and math.isfinite(loss)]
        lowest = min(losses, default=math.inf)
        limit = lowest + _LOST_NATS if alike[0].get("is_divergence") else _LOST * lowest
        notes += [note for arm in arms if (note := divergence_note(arm.name, alike, limit)) is not None]
    fixed = [f"{arm.name} ({arm.fixed['learning_rate']:g})" for arm in in_table if not arm.dimensions]
    if len(in_table) > 1 and fixed:
        notes.append(f"not searched, so ranked by one learning rate alone: {', '.join(fixed)}")
    return notes


def edge_notes(arm: ArmConfig, winner: Mapping[str, Scalar]) -> list[str]:
    """A note for each searched value of an arm's winner that is at an end of its range or of its choices."""
    notes = []
    for key, value in winner.items():
        distribution = arm.distribution(key, winner)
        end = None if distribution is None else _end(value, distribution)
        if end is not None:
            number = f"{value:.2g}" if isinstance(value, float) else value
            notes.append(f"{arm.name}: the winner's {key} {number} is {end}; widen it")
    return notes


def divergence_note(arm: str, search: Sequence[SearchTrial], limit: float) -> str | None:
    """The value with which most of an arm's trials diverged, where that is not so with its other values.

    A trial has diverged if it failed, or ended with a dev loss above `limit`.
    """
    trials = [trial for trial in search if trial["arm"] == arm and trial["state"] != "running"]
    lost = [trial for trial in trials if _has_diverged(trial, limit)]
    if len(trials) < _FEWEST_TRIALS or not lost:
        return None
    advice = "their learning rates may be too large"
    best: tuple[float, str] | None = None
    for key, value in _values(trials):
        having = [trial for trial in trials if key in trial["config"] and is_among(trial["config"][key], (value,))]
        lost_here = sum(trial in lost for trial in having)
        share = lost_here / len(having)
        if not _FEWEST_TRIALS <= len(having) < len(trials):
            continue
        elsewhere = (len(lost) - lost_here) / (len(trials) - len(having))
        if share > 0.5 >= elsewhere and (best is None or share - elsewhere > best[0]):
            name = "null" if value is None else value
            best = share - elsewhere, f"{arm}: {lost_here} of {len(having)} trials with {key} {name} diverged: {advice}"
    if best is not None:
        return best[1]
    return f"{arm}: {len(lost)} of {len(trials)} trials diverged: {advice}" if 2 * len(lost) > len(trials) else None


def _has_diverged(trial: SearchTrial, limit: float) -> bool:
    loss = trial["dev_loss"]
    return trial["state"] == "failed" or (loss is not None and not loss <= limit)


def _values(trials: Sequence[SearchTrial]) -> list[tuple[str, Scalar]]:
    """Every value that trials share, by its key; floats are drawn anew for each trial."""
    pairs = ((key, value) for trial in trials for key, value in trial["config"].items() if not isinstance(value, float))
    return list(dict.fromkeys(pairs))


def _end(value: Scalar, distribution: AnyDistribution) -> str | None:
    """`the largest allowed (0.001 to 0.04)`; None where the value is at no end, or nothing lies beyond the end."""
    numbers = sorted(filter(is_number, distribution.ends()))
    fewest = _FEWEST_NUMBERS if isinstance(distribution, Choice) else 2
    if not is_number(value) or len(numbers) < fewest:
        return None
    low, high = numbers[0], numbers[-1]
    if isinstance(distribution, Choice):
        place = {low: 0.0, high: 1.0}.get(value, 0.5)
    elif isinstance(distribution, LogUniform):
        place = math.log(value / low) / math.log(high / low)
    else:
        place = (value - low) / (high - low)
    near = "" if place in (0.0, 1.0) else "near "
    if place >= 1 - _EDGE:
        return f"{near}the largest allowed ({low:g} to {high:g})"
    is_smallest_of_all = low == 0 or (isinstance(low, int) and low <= 1)
    return f"{near}the smallest allowed ({low:g} to {high:g})" if place <= _EDGE and not is_smallest_of_all else None
