"""The search of an arm in one picture: every trial across all its searched values to its dev loss."""

import math
from collections.abc import Sequence

from prefixray.config.space import is_number
from prefixray.reporting.charts.axes import Axis, Groups
from prefixray.reporting.charts.parallel import Across, Upright, parallel
from prefixray.reporting.figures import (
    LOSS,
    Figure,
    best_trial,
    loss_limits,
    value_axis,
    value_name,
    value_order,
)
from prefixray.reporting.tables import loss_text, search_grid, state_text
from prefixray.results.record import SearchTrial
from prefixray.system.records import Scalar

_FEWEST_TRIALS = 3
_MOST_KEYS = 6  # axes that fit on a phone
_MOST_NAMES = 6  # numbers of more values than that have an axis of numbers
_LOSS_NAME = LOSS.partition(" (")[0]


def parallel_figure(arm: str, trials: Sequence[SearchTrial]) -> list[Figure]:
    """Parallel coordinates; nothing where fewer than two values were searched, or where they do not fit."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial["config"]))
    keys = [key for key in keys if len({trial["config"].get(key) for trial in trials}) > 1]
    scored = [(trial, loss) for trial in trials if (loss := trial["dev_loss"]) is not None and math.isfinite(loss)]
    if not 2 <= len(keys) <= _MOST_KEYS or len(scored) < _FEWEST_TRIALS:
        return []
    values = {key: _values(key, [trial for trial, _ in scored]) for key in keys}
    uprights = [_upright(key, values[key]) for key in keys]
    limits = loss_limits(trials, [loss for _, loss in scored])
    uprights.append(Upright(_LOSS_NAME, Axis(LOSS), limits))
    best, lines = best_trial(trials), []
    for trial, loss in scored:
        places = {
            key: _place(trial["config"][key], upright, values[key])
            for key, upright in zip(keys, uprights, strict=False)
            if key in trial["config"]
        }
        shown = ", ".join(f"{key} {value_name(key, trial['config'][key])}" for key in places)
        tip = f"{arm}/{trial['number']}: {shown}; dev loss {loss_text(trial)}, {state_text(trial)}"
        lines.append(Across({**places, _LOSS_NAME: loss}, tip, trial["state"] != "done", trial is best))
    question = f"{arm}: Which values go together?"
    caption = "A line is a trial, its end its last dev loss; the heavy line is the best, thin ones were stopped."
    return [Figure(question, parallel(uprights, lines, title=question), caption, search_grid(trials))]


def _values(key: str, trials: Sequence[SearchTrial]) -> list[Scalar]:
    return sorted({trial["config"][key] for trial in trials if key in trial["config"]}, key=value_order)


def _upright(key: str, values: Sequence[Scalar]) -> Upright:
    numbers = list(filter(is_number, values))
    if len(numbers) == len(values) > _MOST_NAMES:
        axis = value_axis(key, numbers, None)
        assert not isinstance(axis, Groups), "its values are numbers"
        return Upright(key, axis, (min(numbers), max(numbers)))
    return Upright(key, [value_name(key, value) for value in values])


def _place(value: Scalar, upright: Upright, values: Sequence[Scalar]) -> float:
    """The number itself, or its index among the values."""
    return float(value) if isinstance(upright.scale, Axis) and is_number(value) else float(values.index(value))
