"""The tables over several sweeps, and their CSV."""

from collections.abc import Sequence

from prefixray.data.catalog import task_title
from prefixray.metrics import decimals, label
from prefixray.reporting.grid import Grid
from prefixray.reporting.several.side_by_side import OneOf, arm_names, mean_ranks, num_comparisons
from prefixray.reporting.tables import csv_rows, interval_texts
from prefixray.reporting.verdict import is_significant, num_seeds
from prefixray.results.statistics import p_text


def score_grid(sweeps: Sequence[OneOf]) -> Grid:
    """A row per arm and a column per sweep, each score with its interval; a star marks a significant difference."""
    names = arm_names(sweeps)
    columns = {"arm": names}
    for sweep in sweeps:
        metric, count = sweep.results["metric"], sweep.results["num_sources"]
        arms = {arm["arm"]: arm for arm in sweep.results["arms"]}
        scores = [(arms[name]["scores"][metric] if name in arms else None, count) for name in names]
        cells = interval_texts(scores, decimals(metric))
        stars = ["*" if name in arms and is_significant(arms[name]) else " " for name in names]
        starred = [cell.replace(" [", f"{star} [", 1) for cell, star in zip(cells, stars, strict=True)]
        columns[f"{sweep.name}: {label(metric)} [95 %]"] = starred
    if len(sweeps) > 1:
        ranked = mean_ranks(sweeps)
        columns["mean rank"] = [f"{ranked[name]:.2f}" if name in ranked else "-" for name in names]
    return Grid(list(columns), list(zip(*columns.values(), strict=True)), frozenset({"arm"}))


def difference_grid(sweeps: Sequence[OneOf]) -> Grid:
    """A row per comparison: the difference to the sweep's reference, p, and p corrected over all rows."""
    corrected = f"p (Holm, {num_comparisons(sweeps)})"
    rows: list[list[str]] = []
    for sweep in sweeps:
        results = sweep.results
        arms = [arm for arm in sweep.tuned if arm["difference"] is not None]
        differences = [(arm["difference"], results["num_sources"]) for arm in arms]
        for arm, difference in zip(arms, interval_texts(differences, decimals(results["metric"]), "+"), strict=True):
            p, p_holm = ("-" if value is None else p_text(value) for value in (arm["p"], arm["p_holm"]))
            star = " *" if is_significant(arm) else "  "
            rows.append([sweep.name, arm["arm"], results["reference"], label(results["metric"]), difference])
            rows[-1] += [p, p_holm + star]
    header = ["sweep", "arm", "against", "metric", "difference [95 %]", "p", corrected]
    return Grid(header, rows, frozenset({"sweep", "arm", "against", "metric"}))


def sweep_grid(sweeps: Sequence[OneOf]) -> Grid:
    """What the sweeps are: a row each."""
    rows = []
    for sweep in sweeps:
        results = sweep.results
        trials = {arm["num_trials"] for arm in sweep.tuned}
        rows.append(
            [
                sweep.name,
                task_title(results["task"]),
                results["base"],
                "all" if sweep.num_train is None else f"{sweep.num_train:,}",
                f"{results['num_sources']:,} of {results['num_sources_total']:,}",
                " to ".join(dict.fromkeys(map(str, (min(trials), max(trials))))) if trials else "-",
                str(num_seeds(results)),
                f"{sum(arm['minutes'] for arm in results['arms']):.0f}",
            ]
        )
    header = ["sweep", "task", "base", "trained on", "test sources", "trials", "seeds", "min"]
    return Grid(header, rows, frozenset({"sweep", "task", "base"}))


def comparison_rows(sweeps: Sequence[OneOf]) -> list[dict[str, object]]:
    """A row per sweep and arm, by column, numbers unrounded; `p_holm` is corrected over all sweeps."""
    ranked = mean_ranks(sweeps)
    rows = []
    for sweep in sweeps:
        results = sweep.results
        about = {key: results[key] for key in ("base", "task", "metric", "reference", "num_sources")}
        for arm, row in zip(results["arms"], csv_rows(results), strict=True):
            method = arm["config"].get("method")
            preseqlen = method.get("preseqlen") if isinstance(method, dict) else None
            rank = ranked.get(arm["arm"])
            own = {"num_train": sweep.num_train, "preseqlen": preseqlen, "mean_rank": rank}
            rows.append({"sweep": sweep.name, **about, **own, **row})
    return rows
