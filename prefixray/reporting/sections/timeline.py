"""What each worker did at which time, and for how much of it there was nothing to do."""

from pathlib import Path

from prefixray.reporting.charts.axes import Axis
from prefixray.reporting.charts.canvas import NUM_KINDS
from prefixray.reporting.charts.lanes import Bar, Lane, Paint, lanes
from prefixray.reporting.figures import Figure
from prefixray.reporting.grid import Grid
from prefixray.reporting.sections.section import Section
from prefixray.results.record import Stored, is_finished, tuned_arms
from prefixray.results.timeline.keeper import Doing
from prefixray.results.timeline.read import KINDS, Span, Timeline, read_timeline

_QUESTION = "Who did what when?"
_START, _DECODE = "starting", "decoding"


def timeline_section(stored: Stored, folder: Path) -> list[Section]:
    """Nothing where no timeline was written, as by an older version, or where no worker has begun to work."""
    timeline = read_timeline(folder)
    if timeline is None:
        return []
    rows = [
        [lane.worker, f"{lane.total / 60:.1f}", *(_percent(lane.seconds[kind], lane.total) for kind in KINDS)]
        for lane in timeline.lanes
    ]
    each = ", ".join(f"{lane.worker} {100 * lane.idle_share:.0f} %" for lane in timeline.lanes)
    text = [
        f"Workers had nothing to do, or waited, for {100 * timeline.idle_share:.0f} % of their time"
        + (f": {each}." if len(timeline.lanes) > 1 else "."),
        "Starting is loading the base and the data. Waiting is having trials without a step: they are being built, or "
        "wait for a verdict. Idle is having neither a trial nor anything to decode. When each trial began and "
        "ended is in Optuna's own timeline: optuna-dashboard study.journal, in the sweep's folder.",
    ]
    grid = Grid(["worker", "minutes", *KINDS], rows, frozenset({"worker"}))
    return [Section("timeline", "What did the workers do?", grid=grid, text=text, figures=[_figure(stored, timeline)])]


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def _figure(stored: Stored, timeline: Timeline) -> Figure:
    seen = dict.fromkeys(stage for lane in timeline.lanes for span in lane.spans for stage in span.doing.trials)
    arms = [arm["arm"] for arm in tuned_arms(stored)] if is_finished(stored) else []
    order = list(dict.fromkeys([*arms, *(stage.rpartition("/")[2] for stage in seen)]))
    colours = {arm: kind % NUM_KINDS for kind, arm in enumerate(order)}
    paints = {
        stage: Paint(_shown(stage), f"k{colours[stage.rpartition('/')[2]]}" + ("" if "/" in stage else " pale"))
        for stage in sorted(seen, key=lambda stage: (order.index(stage.rpartition("/")[2]), "/" in stage, stage))
    }
    paints |= {_DECODE: Paint(_DECODE, "plain-ink"), _START: Paint(_START, "plain-rule")}
    rows, numbers = [], []
    for lane in timeline.lanes:
        bars = [_bar(span, paints) for span in lane.spans if span.doing.does != "idle"]
        rows.append(Lane(lane.worker, bars))
        minutes: dict[str, float] = {}
        for bar in bars:
            for kind, share in bar.shares.items():
                minutes[paints[kind].name] = minutes.get(paints[kind].name, 0.0) + share * (bar.end - bar.begin)
        numbers += [[lane.worker, name, f"{minutes[name]:.1f}"] for name in sorted(minutes)]
    axis = Axis("minutes of the command")
    begins = timeline.begins[1:]
    chart = lanes(rows, paints, axis, end=timeline.seconds / 60, begins=[at / 60 for at in begins], title=_QUESTION)
    caption = "Trials in one worker stand on one another, those of the search pale; without a bar, it did nothing."
    if begins:
        caption += " A dotted line: the command was started again; the time between is left out."
    grid = Grid(["worker", "work", "minutes"], numbers, frozenset({"worker", "work"}))
    return Figure(_QUESTION, chart, caption, grid)


def _shown(stage: str) -> str:
    """A stage as the legend has it."""
    kind, _, arm = stage.rpartition("/")
    return {"": f"{arm}, search", "candidates": f"{arm}, candidates", "final": f"{arm}, final"}[kind]


def _bar(span: Span, paints: dict[str, Paint]) -> Bar:
    begin, end = span.begin / 60, span.end / 60
    when = f"minute {begin:.1f} to {end:.1f}"
    match span.doing:
        case Doing(does="train", trials=trials):
            num = sum(trials.values())
            ordered = [stage for stage in paints if stage in trials]
            text = ", ".join(f"{trials[stage]} of {paints[stage].name}" for stage in ordered)
            return Bar(begin, end, {stage: trials[stage] / num for stage in ordered}, f"{when}: {text}")
        case Doing(does="decode"):
            return Bar(begin, end, {_DECODE: 1.0}, f"{when}: {_DECODE}")
        case _:
            return Bar(begin, end, {_START: 1.0}, f"{when}: {_START}")
