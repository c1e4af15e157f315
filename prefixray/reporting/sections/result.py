"""What the final stage has found."""

import math
import statistics
from pathlib import Path

from prefixray.reporting.charts.axes import Axis
from prefixray.reporting.charts.plots import Dot, Series, trends
from prefixray.reporting.figures import LOSS, Figure, difference_figure, size_figure
from prefixray.reporting.grid import Grid
from prefixray.reporting.sections.section import Section
from prefixray.reporting.tables import final_grid, group_grid, seed_grid, title
from prefixray.reporting.verdict import notes_without_verdict
from prefixray.results.record import Results, tuned_arms

GOES_ON = "If the sweep does not run any more, the command that started it, with the same options, goes on with it."
"""`sweep.yaml` in the folder alone would not: the options may have named another sweep."""


def result_section(results: Results) -> Section:
    """The final table with its notes, the differences and the sizes; the page's headline is the verdict."""
    tuned = tuned_arms(results)
    compared = [(arm, arm["difference"]) for arm in tuned if arm["difference"] is not None]
    figures = []
    if compared:
        figures.append(difference_figure(results))
    if len(tuned) > 1:
        figures.append(size_figure(results, tuned))
    return Section(
        "result",
        "Which method is best?",
        grid=final_grid(results),
        text=[f"{title(results)}. Scores with their 95 % intervals.", *notes_without_verdict(results)],
        figures=figures,
    )


def no_result_section(folder: Path) -> Section:
    """How the sweep goes on, and how many of its final runs have ended already."""
    ended = len(list(folder.glob("final/*/result.json")))
    final = f"Final runs that have ended: {ended}." if ended else "The final stage has not been reached yet."
    return Section("result", "Which method is best?", text=[final, GOES_ON])


def seed_section(results: Results) -> list[Section]:
    """Nothing where each arm has one seed: the final table has its scores."""
    grid = seed_grid(results)
    return [] if grid is None else [Section("seeds", "What did each seed give?", grid=grid)]


def group_section(results: Results) -> list[Section]:
    """Nothing where the task names no groups of its test sources."""
    grid = group_grid(results)
    return [] if grid is None else [Section("groups", "Does it hold for each group of sources?", grid=grid)]


def final_curve_section(results: Results) -> list[Section]:
    """The dev losses of the final runs over their steps; nothing where an older record lacks them."""
    series, rows = [], []
    tuned = tuned_arms(results)
    for kind, arm in enumerate(tuned):
        by_step: dict[int, list[float]] = {}
        for seed in arm["seeds"]:
            for step, loss in seed.get("curve", ()):
                if math.isfinite(loss):
                    by_step.setdefault(step, []).append(loss)
        dots = []
        for step, losses in sorted(by_step.items()):
            mean, low, high = statistics.fmean(losses), min(losses), max(losses)
            numbers = [f"{number:.3f}" for number in (mean, low, high)]
            tip = f"{arm['arm']}, step {step}: {numbers[0]}, from {numbers[1]} to {numbers[2]} in {len(losses)} runs"
            dots.append(Dot(step, mean, tip, interval=(low, high) if len(losses) > 1 else None))
            rows.append([arm["arm"], str(step), *numbers, str(len(losses))])
        if dots:
            series.append(Series(arm["arm"], dots, kind=kind))
    if not series:
        return []
    question = "Dev loss of the winners, trained again"
    chart = trends(series, Axis("step (optimiser updates)"), Axis(LOSS), title=question)
    header = ["arm", "step", "mean", "lowest", "highest", "runs"]
    numbers_of_all = Grid(header, rows, frozenset({"arm"}))
    figure = Figure(question, chart, "Whiskers go from the lowest to the highest of the runs.", numbers_of_all)
    return [Section("finals", "How did the final runs go?", figures=[figure])]
