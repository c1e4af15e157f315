"""How the search went, and what it says of the searched values."""

import math
import statistics
from collections.abc import Sequence

from prefixray.reporting.figures import FEW, count_states, curve_figure, importance_figure, loss_limits, value_figure
from prefixray.reporting.grid import Grid
from prefixray.reporting.sections.parallel import parallel_figure
from prefixray.reporting.sections.section import Section
from prefixray.results.record import SearchTrial, Stored
from prefixray.results.statistics import ranks

_FEWEST_RANKED = 3  # with fewer trials there is no rank correlation
_MISSING = (
    "This record was written by an older version and does not hold {}. Run the sweep's command again: nothing is "
    "trained anew, and the record is written in full."
)


def curve_section(stored: Stored) -> Section:
    """The learning curves of every arm's trials."""
    search, rungs = stored["search"], rungs_of(stored)
    heading = "How did the search go?"
    if not any(trial.get("curve") for trial in search):
        missing = [_MISSING.format("learning curves")] if _is_older(search) else []
        return Section("search", heading, text=[_summary(search), *missing])
    values = [value for trial in search for _, value in trial.get("curve", ()) if math.isfinite(value)]
    limits = loss_limits(search, values)
    beyond = "; an arrow is a loss beyond it." if max(values) > limits[1] else "."
    so_far = ", or how far one that runs has come" if any(trial["state"] == "running" for trial in search) else ""
    reading = (
        f"A cross marks where a trial was stopped{so_far}, a dot where one finished, the heavy line the arm's best. "
        f"Dotted lines are the rungs, at which trials are compared. All arms share the scale{beyond}"
    )
    figures = [curve_figure(arm, trials, limits, rungs) for arm, trials in _arms(search)]
    return Section("search", heading, text=[_summary(search)], reading=reading, figures=figures)


def value_section(stored: Stored) -> Section:
    """The dev loss over each searched value, and the values' importance."""
    search, rungs, importance = stored["search"], rungs_of(stored), stored.get("importance")
    figures = []
    for arm, trials in _arms(search):
        keys = dict.fromkeys(key for trial in trials for key in trial["config"])
        for key in keys:
            if len({trial["config"].get(key) for trial in trials}) > 1:
                figures += value_figure(arm, key, trials, rungs)
        figures += parallel_figure(arm, trials)
        figures += [importance_figure(shares) for shares in importance or () if shares["arm"] == arm]
    text = ["A value that was tried once may owe its place to the others that it was drawn with."]
    reading = "Filled marks are finished trials with their best dev loss. "
    if rungs and any(trial.get("curve") for trial in search):
        reading += (
            f"Hollow marks are all trials at the first rung (step {rungs[0]}), the only place where all of them can be "
            "compared; a trial that finished has both. "
        )
    elif rungs:
        reading += f"Hollow marks are trials that were stopped at the first rung (step {rungs[0]}). "
    reading += "Lines join the lowest at each value; an arrow is a loss beyond the axis."
    if importance is None:
        text.append(_MISSING.format("parameter importance"))
    elif missing := [arm for arm, _ in _arms(search) if arm not in {shares["arm"] for shares in importance}]:
        text.append(
            f"No importance for {', '.join(missing)}: fewer than 10 trials to compare, or a single searched value."
        )
    return Section("values", "Which values matter?", text=text, reading=reading, figures=figures)


def early_section(stored: Stored) -> Section:
    """The rank correlation between the dev loss at each rung and at the end."""
    heading = "Can a rung's verdict be trusted?"
    rungs = rungs_of(stored)
    if not rungs:
        return Section("early", heading, text=["This sweep has no rungs: no trial was stopped early."])
    rows = []
    for arm, trials in _arms(stored["search"]):
        for number, step in enumerate(rungs, start=1):
            pairs = [
                (losses[step], losses[max(losses)])
                for trial in trials
                if trial["state"] == "done" and step in (losses := dict(trial.get("curve", ())))
            ]
            rho = rank_correlation(pairs)
            rows.append([arm, str(number), str(step), "-" if rho is None else f"{rho:+.2f}", str(len(pairs))])
    header = ["arm", "rung", "step", "rank correlation", "n"]
    text = [
        "Spearman's rank correlation between the dev loss at a rung and at the last step: 1 says that the rung orders "
        "trials as their end does. Only the n trials that finished have both; stopped trials are missing by design, so "
        "this is the order among survivors, which lie close together and are harder to tell apart than all would "
        f"be. With fewer than {FEW} it says little; a dash: fewer than {_FEWEST_RANKED}, or no two that differ."
    ]
    if _is_older(stored["search"]):
        return Section("early", heading, text=[_MISSING.format("losses at the rungs")])
    return Section("early", heading, grid=Grid(header, rows, frozenset({"arm"})), text=text)


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's rank correlation; equal values share their mean rank.

    None for fewer than three pairs, or where all values of a side are equal.
    """
    if len(pairs) < _FEWEST_RANKED:
        return None
    first, second = (ranks(side) for side in zip(*pairs, strict=True))
    if len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return statistics.correlation(first, second)


def _summary(search: Sequence[SearchTrial]) -> str:
    return "; ".join(f"{arm}: {count_states(trials)}" for arm, trials in _arms(search)) + "."


def _is_older(search: Sequence[SearchTrial]) -> bool:
    """Whether the record is of a version that kept no curves."""
    return bool(search) and not any("curve" in trial for trial in search)


def rungs_of(stored: Stored) -> list[int]:
    """The steps of the rungs; an older record knows only those at which a trial was stopped."""
    known = {trial["rung"]: trial["step"] for trial in stored["search"] if trial["rung"] is not None}
    return stored.get("rungs", [known[rung] for rung in sorted(known)])


def _arms(search: Sequence[SearchTrial]) -> list[tuple[str, list[SearchTrial]]]:
    names = dict.fromkeys(trial["arm"] for trial in search)
    return [(name, [trial for trial in search if trial["arm"] == name]) for name in names]
