"""The figures of a report: each is a chart with its question, its caption and its numbers as a table."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefixray.config.space import is_number
from prefixray.metrics import decimals, higher_is_better, label, unit
from prefixray.reporting.charts.axes import Axis, Groups, number_text, upper_limit
from prefixray.reporting.charts.plots import Dot, Line, Series, bars, curves, forest, scatter, strips
from prefixray.reporting.grid import Grid, count_text, scientific, value_text
from prefixray.reporting.tables import known_interval, loss_text, state_text
from prefixray.results.record import ArmResult, Importance, Interval, Results, SearchTrial, tuned_arms
from prefixray.system.records import Scalar

LOSS = "dev loss (nats per token)"
FEW = 10  # with fewer finished trials a caption says that they are too few
_QUESTIONS = {
    "preseqlen": "Do longer prefixes help here?",
    "mid_dim": "Flat, or behind a network?",
    "init_token": "Which words should a prefix start from?",
    "learning_rate": "Is the range of learning rates right?",
    "prefix_mode": "Keys and values, or only embeddings?",
    "format_mode": "Before the source, or behind it?",
    "bottleneck": "How wide should the adapter be?",
    "percent": "How large should the adapters be?",
    "top_layers": "How many blocks should be trained?",
    "rank": "How high should the rank be?",
}
_UNITS = {
    "preseqlen": "positions",
    "mid_dim": "units; flat: no network",
    "bottleneck": "units",
    "top_layers": "blocks; none: all",
    "rank": "dimensions",
}


@dataclass(frozen=True)
class Figure:
    """A chart with its question, its caption and its numbers."""

    title: str
    chart: str  # SVG; empty where there is nothing to draw
    caption: str
    numbers: Grid
    reading: str = ""  # how to read the chart


def difference_figure(results: Results) -> Figure:
    """The distance of each tuned arm to the reference, with its interval."""
    metric, reference = results["metric"], results["reference"]
    kinds = _kinds(results)
    digits = decimals(metric)
    dots, rows = [], []
    for arm in results["arms"]:
        difference = arm["difference"]
        if arm["method"] is None or difference is None:
            continue
        difference = known_interval(difference, results["num_sources"])
        numbers = [f"{difference[end]:+.{digits}f}" for end in ("value", "low", "high")]
        tip = f"{arm['arm']}: {numbers[0]} [{numbers[1]}, {numbers[2]}] {label(metric)} to {reference}"
        dots.append(Dot(difference["value"], 0, tip, arm["arm"], drawn(difference), kinds[arm["arm"]]))
        rows.append([arm["arm"], *numbers])
    better = "right" if higher_is_better(metric) else "left"
    question = "Which differences are real?"
    axis = Axis(f"{label(metric)} minus {reference}'s ({unit(metric)}, 95 % interval)")
    return Figure(
        question,
        forest(dots, axis, title=question, zero=reference),
        "An interval that holds 0 is compatible with no difference; the sources are the same for all arms.",
        Grid(["arm", "difference", "low", "high"], rows, frozenset({"arm"})),
        reading=f"To the {better} of the line is better than {reference}.",
    )


def size_figure(results: Results, tuned: Sequence[ArmResult]) -> Figure:
    """Score against stored parameters, for these arms."""
    metric = results["metric"]
    digits = decimals(metric)
    kinds = _kinds(results)
    dots, rows = [], []
    for arm in tuned:
        score, stored = known_interval(arm["scores"][metric], results["num_sources"]), arm["stored_parameters"]
        numbers = [f"{score[end]:.{digits}f}" for end in ("value", "low", "high")]
        tip = f"{arm['arm']}: {numbers[0]} [{numbers[1]}, {numbers[2]}] {label(metric)}, {stored:,} parameters stored"
        if stored > 0:
            dots.append(Dot(stored, score["value"], tip, arm["arm"], drawn(score), kinds[arm["arm"]]))
        rows.append([arm["arm"], f"{stored:,}", *numbers])
    untrained = " ".join(
        f"{arm['arm']}, which nobody has trained, puts {arm['stored_parameters']:,} numbers in front of a row, and "
        f"scores {arm['scores'][metric]['value']:.{digits}f}."
        for arm in results["arms"]
        if arm["method"] is None
    )
    question = "What does a better score cost in storage?"
    x_axis = Axis("stored parameters (count, log scale)", log=True, form=round_count)
    y_axis = Axis(f"test {label(metric)} ({unit(metric)}, 95 % interval)")
    chart = scatter(dots, x_axis, y_axis, title=question) if dots else ""
    return Figure(
        question,
        chart,
        untrained,
        Grid(["arm", "stored", label(metric), "low", "high"], rows, frozenset({"arm"})),
        reading=f"Up is {'better' if higher_is_better(metric) else 'worse'}, left is smaller.",
    )


def curve_figure(arm: str, trials: Sequence[SearchTrial], limits: tuple[float, float], rungs: Sequence[int]) -> Figure:
    """The learning curves of an arm's trials."""
    best = best_trial(trials)
    lines, rows = [], []
    for trial in trials:
        points = [(step, value) for step, value in trial.get("curve", ()) if math.isfinite(value)]
        if not points:
            continue
        name = f"{arm}/{trial['number']}"
        shown = ", ".join(f"{key} {value_text(key, value)}" for key, value in trial["config"].items())
        tip = f"{name}: {shown}; dev loss {points[-1][1]:.3f} at step {points[-1][0]}, {state_text(trial)}"
        lines.append(Line(points, tip, cut=trial["state"] != "done", strong=trial is best))
        rows.append([name, *(_at(points, step) for step in [*rungs, trial["num_steps"]]), state_text(trial)])
    header = ["trial", *(f"step {step}" for step in rungs), "end", "state"]
    caption = f"{count_states(trials)}." + (f" Best: {arm}/{best['number']}, {best['dev_loss']:.3f}." if best else "")
    chart = curves(
        lines,
        Axis("step (optimiser updates)"),
        Axis(LOSS),
        title=f"Learning curves of {arm}",
        limits=limits,
        rungs=rungs,
    )
    return Figure(arm, chart if lines else "", caption, Grid(header, rows, frozenset({"trial", "state"})))


def value_figure(arm: str, key: str, trials: Sequence[SearchTrial], rungs: Sequence[int]) -> list[Figure]:
    """The dev loss over one searched value; nothing where no trial has a loss that can be compared.

    Where a few words of `init_token` were searched, too, each word has a series of its own.
    """
    known = [trial for trial in trials if key in trial["config"]]
    values = sorted({trial["config"][key] for trial in known}, key=value_order)
    numbers = list(filter(is_number, values))
    is_range = len(numbers) == len(values) > 6
    position: Callable[[Scalar], float] = (lambda value: float(value or 0)) if is_range else values.index
    has_words = key != "init_token" and _num_values(trials, "init_token") in (2, 3, 4, 5)
    words = sorted({trial["config"].get("init_token") for trial in known}, key=value_order) if has_words else [None]
    series, rows = [], []
    for losses, filled, when in (
        (_final_losses(known), True, "finished"),
        (_first_losses(known, rungs), False, f"at step {rungs[0]}" if rungs else ""),
    ):
        for kind, word in enumerate(words):
            part = [(t, loss) for t, loss in losses if not has_words or t["config"].get("init_token") == word]
            name = f"{value_name('init_token', word)} ({when})" if has_words else when
            dots = [
                Dot(position(t["config"][key]), loss, f"{arm}/{t['number']}: {loss:.3f}, {when}") for t, loss in part
            ]
            if dots:
                series.append(Series(name, dots, kind=kind, filled=filled))
        for value in values:
            of_value = [loss for trial, loss in losses if trial["config"][key] == value]
            if of_value:
                rows.append([value_name(key, value), when, f"{min(of_value):.3f}", str(len(of_value))])
    if not series:
        return []
    header = [key, "trials", "best dev loss", "number"]
    if is_range:
        header = [key, "state", "last dev loss", "trial"]
        rows = [[value_name(key, t["config"][key]), state_text(t), loss_text(t), f"{arm}/{t['number']}"] for t in known]
        rows.sort(key=lambda row: float(row[0]))
    axis = value_axis(key, numbers, None if is_range else [value_name(key, value) for value in values])
    question = _QUESTIONS.get(key, f"How does {key} matter?")
    limits = loss_limits(known, [dot.y for part in series for dot in part.points])
    chart = strips(series, axis, Axis(LOSS), title=f"{question} {arm}", limits=limits)
    grid = Grid(header, rows, frozenset({header[1], "trial"}))
    return [Figure(f"{arm}: {question}", chart, _answer(key, known), grid)]


def importance_figure(importance: Importance) -> Figure:
    """The importance of each searched value of an arm."""
    rows = sorted(importance["shares"].items(), key=lambda pair: -pair[1])
    question = f"{importance['arm']}: What sets the best quarter of the trials apart?"
    axis = Axis("importance (share of 1)")
    grid = Grid(["value", "importance"], [[key, f"{share:.2f}"] for key, share in rows], frozenset({"value"}))
    count, step = importance["num_trials"], importance["step"]
    caption = f"PED-ANOVA (Optuna) on {count} trials by their dev loss up to step {step}."
    few = " With so few trials a hint, no more." if count < 50 else ""
    return Figure(question, bars(rows, axis, title=question), caption + few, grid)


def count_states(trials: Sequence[SearchTrial]) -> str:
    """The number of trials by the way they ended, in words."""
    states = {
        "done": "finished",
        "stopped": "stopped early",
        "failed": "failed",
        "paused": "paused",
        "running": "not ended",
    }
    counts = {text: sum(trial["state"] == state for trial in trials) for state, text in states.items()}
    parts = ", ".join(f"{count} {text}" for text, count in counts.items() if count)
    return f"{len(trials)} trial{'s' if len(trials) != 1 else ''}, {parts}"


def value_axis(key: str, numbers: Sequence[float], names: Sequence[str] | None) -> Axis | Groups:
    """The axis of a searched value; `names` are given where its values are no numbers."""
    unit = _UNITS.get(key)
    if names is not None:
        return Groups(f"{key} ({unit})" if unit else f"{key} (text)" if key == "init_token" else key, names)
    log = min(numbers) > 0 and max(numbers) / min(numbers) > 8
    form = scientific if key == "learning_rate" else number_text
    scale = "log scale" if log else "linear scale"
    return Axis(f"{key} ({unit}, {scale})" if unit else f"{key} ({scale})", log=log, form=form)


def _answer(key: str, trials: Sequence[SearchTrial]) -> str:
    """The value of the best finished trial, in words."""
    done = [trial for trial in trials if trial["state"] == "done" and trial["dev_loss"] is not None]
    if not done:
        return "No trial with a value of this finished."
    best = best_trial(done)
    assert best is not None, "a trial is done"
    tried = f"{len(done)} of {len(trials)} trials finished"
    few = "" if len(done) >= FEW else ": too few to say that others are worse"
    value = value_name(key, best["config"][key])
    return f"The best finished trial has {key} {value} (dev loss {best['dev_loss']:.3f}). {tried}{few}."


def _kinds(results: Results) -> dict[str, int]:
    """A colour and shape for each tuned arm."""
    tuned = [arm["arm"] for arm in tuned_arms(results)]
    return {name: kind for kind, name in enumerate(tuned)}


def best_trial(trials: Sequence[SearchTrial]) -> SearchTrial | None:
    """The finished trial with the lowest dev loss; None where no trial has finished."""
    done = _final_losses(trials)
    return min(done, key=lambda pair: (pair[1], pair[0]["number"]))[0] if done else None


def _final_losses(trials: Sequence[SearchTrial]) -> list[tuple[SearchTrial, float]]:
    """Finished trials with their dev loss, where it is finite."""
    done = [(trial, trial["dev_loss"]) for trial in trials if trial["state"] == "done"]
    return [(trial, loss) for trial, loss in done if loss is not None and math.isfinite(loss)]


def _first_losses(trials: Sequence[SearchTrial], rungs: Sequence[int]) -> list[tuple[SearchTrial, float]]:
    """Trials with their dev loss at the first rung; older records have that of the trials stopped there only."""
    if not rungs:
        return []
    losses = [
        trial["dev_loss"]
        if trial["state"] == "stopped" and trial["step"] == rungs[0]
        else dict(trial.get("curve", ())).get(rungs[0])
        for trial in trials
    ]
    return [(trial, loss) for trial, loss in zip(trials, losses, strict=True) if loss is not None]


def loss_limits(trials: Sequence[SearchTrial], values: Sequence[float]) -> tuple[float, float]:
    """The range of an axis of losses."""
    settled = [loss for _, loss in _final_losses(trials)]
    low, high = min([*values, *settled]), upper_limit(settled, values)
    return low, high if high > low else low + 0.1


def _num_values(trials: Sequence[SearchTrial], key: str) -> int:
    return len({trial["config"][key] for trial in trials if key in trial["config"]})


def value_order(value: Scalar) -> tuple[int, float, str]:
    """A key for sorting: None first, then numbers, then text."""
    if value is None:
        return 0, 0.0, ""
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, str(value))


def value_name(key: str, value: Scalar) -> str:
    """A searched value as it stands on an axis."""
    if value is None:
        return {"mid_dim": "flat", "init_token": "random", "preseqlen": "as init"}.get(key, "none")
    if isinstance(value, float):
        return scientific(value) if value and abs(value) < 0.1 else f"{value:.3g}"
    return str(value)


def drawn(interval: Interval) -> tuple[float, float] | None:
    """The ends of an interval in a chart; None where they are infinite."""
    return (interval["low"], interval["high"]) if math.isfinite(interval["low"]) else None


def round_count(value: float) -> str:
    """A round count: 1M, not 1.0M."""
    return count_text(round(value)).replace(".0", "")


def _at(points: Sequence[tuple[float, float]], step: int) -> str:
    loss = dict(points).get(step)
    return "-" if loss is None else f"{loss:.3f}"
