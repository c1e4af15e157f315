"""The figures over several sweeps: scores over the size of the data, the length of prefixes and what is stored.

Over the data a line joins arms of one name, over lengths prefixes that are equal but for length and learning rate.
Scores by different metrics never share a figure, and no line joins scores that were measured in different ways or on
different test sources.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from prefixray.config.schema import DecodingSettings
from prefixray.metrics import decimals, higher_is_better, label
from prefixray.reporting.charts.axes import Axis, Groups
from prefixray.reporting.charts.plots import Dot, Series, trends
from prefixray.reporting.figures import Figure, difference_figure, drawn, round_count, value_axis, value_name
from prefixray.reporting.grid import Grid
from prefixray.reporting.several.side_by_side import OneOf
from prefixray.reporting.tables import known_interval
from prefixray.results.examples import NUM_EXAMPLES
from prefixray.results.record import ArmResult, Results
from prefixray.system.records import Scalar

_LONGER = "preseqlen"
_OF_ITS_OWN = ("arm", "method", "learning_rate")  # keys of a configuration; a rate is chosen for each length
_MEASURED = "measured"  # a key of `_Point.same` that no name of a line shows


@dataclass(frozen=True)
class _Point:
    """An arm of a sweep at its place in a figure."""

    sweep: OneOf
    arm: ArmResult
    x: float
    same: Mapping[str, Scalar]  # what the points of a line have in common


def size_figures(sweeps: Sequence[OneOf]) -> list[Figure]:
    """Scores over the number of training examples; nothing where no arm was trained on two different numbers."""
    points = [
        _Point(sweep, arm, sweep.num_train, {"arm": arm["arm"], **_setting(sweep)})
        for sweep in sweeps
        for arm in sweep.tuned
        if sweep.num_train is not None
    ]
    question = "What does more data change?"
    return _figures(points, question, lambda _: Axis("training examples (count, log scale)", True, round_count))


def length_figures(sweeps: Sequence[OneOf]) -> list[Figure]:
    """Scores over `preseqlen`; nothing where no two prefixes differ in it alone, or in the learning rate as well."""
    points = []
    for sweep in sweeps:
        for arm in sweep.tuned:
            method = arm["config"].get("method")
            length = method.get(_LONGER) if isinstance(method, dict) else None
            if isinstance(method, dict) and isinstance(length, int):
                recipe = {key: value for key, value in arm["config"].items() if key not in _OF_ITS_OWN}
                rest = {key: value for key, value in {**recipe, **method}.items() if key != _LONGER}
                size = {} if sweep.num_train is None else {"examples": sweep.num_train}
                points.append(_Point(sweep, arm, length, {**rest, **size, **_setting(sweep)}))

    def axis(numbers: Sequence[float]) -> Axis:
        found = value_axis(_LONGER, numbers, None)
        assert not isinstance(found, Groups), "lengths are numbers"
        return found

    return _figures(points, "Do longer prefixes help here?", axis)


def storage_figures(sweeps: Sequence[OneOf]) -> list[Figure]:
    """Scores over stored parameters, a series per sweep; nothing for a single sweep, whose report has that figure."""
    if len(sweeps) < 2:
        return []
    points = [
        _Point(sweep, arm, arm["stored_parameters"], {"sweep": sweep.name})
        for sweep in sweeps
        for arm in sweep.tuned
        if arm["stored_parameters"] > 0
    ]
    question = "What does a better score cost in storage?"
    return _figures(points, question, lambda _: Axis("stored parameters (count, log scale)", True, round_count))


def all_differences(sweeps: Sequence[OneOf]) -> list[Figure]:
    """Each sweep's differences to its reference."""
    return [
        replace(difference_figure(sweep.results), title=sweep.name)
        for sweep in sweeps
        if any(arm["difference"] is not None for arm in sweep.tuned)
    ]


def _setting(sweep: OneOf) -> dict[str, Scalar]:
    results = sweep.results
    about: dict[str, Scalar] = {"base": results["base"], "task": results["task"]}
    return {**about, "test sources": results["num_sources"], _MEASURED: _measured(results)}


def _measured(results: Results) -> str:
    """The way of measuring, and the first test sources: own data sets are all of the task `custom`."""
    decoding = {**DecodingSettings().model_dump(), **results["decoding"], "batch_size": None}
    signature, evaluation = results["signatures"].get(results["metric"]), results.get("evaluation", "own")
    sources = [example["source"] for example in results["examples"][:NUM_EXAMPLES]]
    return json.dumps([signature, evaluation, decoding, sources], sort_keys=True)


def _figures(points: Sequence[_Point], question: str, axis: Callable[[Sequence[float]], Axis]) -> list[Figure]:
    """A figure for each metric of which some line has two places."""
    figures = []
    for metric in dict.fromkeys(point.sweep.results["metric"] for point in points):
        lines: dict[tuple[tuple[str, Scalar], ...], list[_Point]] = {}
        for point in points:
            if point.sweep.results["metric"] == metric:
                lines.setdefault(tuple(sorted(point.same.items(), key=lambda pair: pair[0])), []).append(point)
        if any(len({point.x for point in line}) > 1 for line in lines.values()):
            figures.append(_figure(list(lines.values()), metric, question, axis))
    return figures


def _figure(
    lines: Sequence[Sequence[_Point]], metric: str, question: str, axis: Callable[[Sequence[float]], Axis]
) -> Figure:
    digits, series, rows = decimals(metric), [], []
    by_sweep = "sweep" in lines[0][0].same
    names = _line_names([line[0].same for line in lines])
    names = [
        f"{name} ({line[0].sweep.name})" if names.count(name) > 1 else name
        for name, line in zip(names, lines, strict=True)
    ]
    for kind, (name, line) in enumerate(zip(names, lines, strict=True)):
        dots = []
        for point in sorted(line, key=lambda point: point.x):
            score = known_interval(point.arm["scores"][metric], point.sweep.results["num_sources"])
            arm = point.arm["arm"]
            numbers = [f"{score[end]:.{digits}f}" for end in ("value", "low", "high")]
            tip = f"{point.sweep.name}, {arm}: {numbers[0]} [{numbers[1]}, {numbers[2]}] {label(metric)}"
            dots.append(Dot(point.x, score["value"], tip, arm if by_sweep and kind == 0 else "", drawn(score)))
            rows.append([name, f"{point.x:,}", point.sweep.name, arm, *numbers])
        series.append(Series(name, dots, kind=kind, joined=not by_sweep))
    x_axis, y_axis = axis([point.x for line in lines for point in line]), Axis(f"test {label(metric)} (95 % interval)")
    header = ["series", x_axis.label.partition(" (")[0], "sweep", "arm", label(metric), "low", "high"]
    return Figure(
        question,
        trends(series, x_axis, y_axis, title=question),
        "",
        Grid(header, rows, frozenset({"series", "sweep", "arm"})),
        reading=f"Up is {'better' if higher_is_better(metric) else 'worse'}.",
    )


def _line_names(settings: Sequence[Mapping[str, Scalar]]) -> list[str]:
    """Names that say in what the lines differ; where there is one line, what it is."""
    keys = list(dict.fromkeys(key for setting in settings for key in setting if key != _MEASURED))
    differing = [key for key in keys if len({setting.get(key) for setting in settings}) > 1]
    shown = differing or [key for key in ("sweep", "arm", "method") if key in keys][:1]
    return [
        ", ".join(
            value_name(key, setting[key])
            if key in ("sweep", "arm", "method", "task", "base")
            else f"{key} {value_name(key, setting[key])}"
            for key in shown
            if key in setting
        )
        for setting in settings
    ]
