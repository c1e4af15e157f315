"""The sections of a report, as plain text, figures and tables; all of it from `results.json`.

A title is the question that its figure or table answers. `page.py` writes the sections as HTML and as Markdown.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefixray.metrics import higher_is_better, label
from prefixray.reporting.figures import (
    FEW,
    Figure,
    count_states,
    curve_figure,
    difference_figure,
    importance_figure,
    loss_limits,
    size_figure,
    value_figure,
)
from prefixray.reporting.grid import Grid
from prefixray.reporting.tables import command_lines, final_grid, group_grid, search_grid, seed_grid, title
from prefixray.reporting.verdict import notes
from prefixray.results.citation import bibtex
from prefixray.results.hypotheses import best_run
from prefixray.results.record import ExampleOutputs, Importance, Results, SearchTrial, Stored, is_finished
from prefixray.results.statistics import ranks

NUM_SHOWN = 20  # sources with their outputs
_FEWEST_RANKED = 3  # with fewer trials there is no rank correlation
_MISSING = (
    "This record was written by an older version and does not hold {}. Run the sweep's command again: nothing is "
    "trained anew, and the record is written in full."
)
_MACHINE = {  # texts of the machine's facts; a fact that is not here follows under its own name
    "cpu": "{}",
    "num_cpus": "{} CPUs",
    "memory_gib": "{} GiB",
    "device": "trained on {}",
    "num_threads": "{} threads a worker",
    "python": "Python {}",
    "system": "{}",
}


@dataclass(frozen=True)
class Output:
    """An arm's output on a source."""

    arm: str
    text: str
    score: str = ""


@dataclass(frozen=True)
class Example:
    """A source with its outputs; `why` says why it was chosen."""

    source: str
    references: Sequence[str]
    outputs: Sequence[Output]
    why: str = ""


@dataclass(frozen=True)
class Section:
    """A section of the report; its parts are shown in the order of the fields."""

    key: str
    title: str
    grid: Grid | None = None
    text: Sequence[str] = ()
    reading: str = ""  # how to read its charts
    figures: Sequence[Figure] = ()
    examples: Sequence[Example] = ()
    code: Sequence[str] = ()
    folded: Grid | None = None  # a long table; the page shows it on a click


def sections(stored: Stored, folder: Path) -> list[Section]:
    """All sections of the report on the sweep in `folder`."""
    search = stored["search"]
    parts = [_result(stored), *_seeds(stored), *_groups(stored)] if is_finished(stored) else [_no_result(folder)]
    if search:
        parts += [_curves(stored), _values(search, _rungs(stored), stored.get("importance")), _early(stored)]
    if is_finished(stored):
        parts += [_outputs(stored), _cost(stored), _use(stored, folder), _records(stored)]
    elif search:
        parts.append(Section("records", "All trials", folded=search_grid(search)))
    return parts


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


def _no_result(folder: Path) -> Section:
    goes_on = f"The same command goes on with it: python -m prefixray.sweep {folder / 'sweep.yaml'}"
    return Section("result", "Which method is best?", text=["The final stage has not been reached yet.", goes_on])


def _result(results: Results) -> Section:
    tuned = [arm for arm in results["arms"] if arm["method"] is not None]
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
        text=[f"{title(results)}. Scores with their 95 % intervals.", *notes(results)],
        figures=figures,
    )


def _groups(results: Results) -> list[Section]:
    """Nothing where the task names no groups of its test sources."""
    grid = group_grid(results)
    return [] if grid is None else [Section("groups", "Does it hold for each group of sources?", grid=grid)]


def _seeds(results: Results) -> list[Section]:
    """Nothing where each arm has one seed: the final table has its scores."""
    grid = seed_grid(results)
    return [] if grid is None else [Section("seeds", "What did each seed give?", grid=grid)]


def _curves(stored: Stored) -> Section:
    search, rungs = stored["search"], _rungs(stored)
    heading = "How did the search go?"
    if not any(trial.get("curve") for trial in search):
        return Section("search", heading, text=[_summary(search), _MISSING.format("learning curves")])
    values = [value for trial in search for _, value in trial.get("curve", ()) if math.isfinite(value)]
    limits = loss_limits(search, values)
    beyond = "; an arrow is a loss beyond it." if max(values) > limits[1] else "."
    reading = (
        "A cross marks where a trial was stopped, a dot where one finished, the heavy line the arm's best. Dotted "
        f"lines are the rungs, at which trials are compared. All arms share the scale{beyond}"
    )
    figures = [curve_figure(arm, trials, limits, rungs) for arm, trials in _arms(search)]
    return Section("search", heading, text=[_summary(search)], reading=reading, figures=figures)


def _values(search: Sequence[SearchTrial], rungs: Sequence[int], importance: Sequence[Importance] | None) -> Section:
    """The dev loss over each searched value, and the values' importance."""
    figures = []
    for arm, trials in _arms(search):
        keys = dict.fromkeys(key for trial in trials for key in trial["config"])
        for key in keys:
            if len({trial["config"].get(key) for trial in trials}) > 1:
                figures += value_figure(arm, key, trials, rungs)
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


def _early(stored: Stored) -> Section:
    """The rank correlation between the dev loss at each rung and at the end."""
    heading = "Can a rung's verdict be trusted?"
    rungs = _rungs(stored)
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
    if not any(trial.get("curve") for trial in stored["search"]):
        return Section("early", heading, text=[_MISSING.format("losses at the rungs")])
    return Section("early", heading, grid=Grid(header, rows, frozenset({"arm"})), text=text)


def _outputs(results: Results) -> Section:
    metric, reference = results["metric"], results["reference"]
    heading = "What do the outputs look like?"
    chosen = [example for example in results["examples"] if "arm" in example]
    if not chosen:
        first = [_example(example, results) for example in results["examples"][:NUM_SHOWN]]
        return Section("outputs", heading, text=["The first sources of the split."], examples=first)
    sign = 1 if higher_is_better(metric) else -1
    ordered = sorted(chosen, key=lambda example: sign * _distance(example, reference))
    behind = [example for example in ordered if sign * _distance(example, reference) < 0]
    ahead = [example for example in reversed(ordered) if sign * _distance(example, reference) > 0]
    text = [
        f"The sources on which an arm's output is farthest from {reference}'s, by {label(metric)} of the source alone: "
        f"first where arms are behind, the worst first, then where they are ahead. Each arm's first seed; numbers "
        f"are {label(metric)} on this source, which is a rough measure for single texts.",
        f"Extremes are no sample: of all {results['num_sources']} sources the table above speaks.",
    ]
    examples = [
        _example(example, results, f"{example['arm']} {distance:.1f} {label(metric)} {where} {reference}")
        for where, group in (("behind", behind), ("ahead of", ahead))
        for example in group
        for distance in [abs(_distance(example, reference))]
    ]
    return Section("outputs", heading, text=text, examples=examples[:NUM_SHOWN])


def _example(example: ExampleOutputs, results: Results, why: str = "") -> Example:
    """An example with the outputs in the order of the arms."""
    scores = example.get("scores", {})
    names = [arm["arm"] for arm in results["arms"] if arm["arm"] in example["outputs"]]
    outputs = [Output(n, example["outputs"][n], f"{scores[n]:.1f}" if n in scores else "") for n in names]
    return Example(example["source"], example["references"], outputs, why)


def _distance(example: ExampleOutputs, reference: str) -> float:
    return example["scores"][example["arm"]] - example["scores"][reference]


def _cost(results: Results) -> Section:
    rows = []
    for arm in (arm for arm in results["arms"] if arm["method"] is not None):
        trials = [trial for trial in results["search"] if trial["arm"] == arm["arm"]]
        steps = sum(trial["step"] for trial in trials)
        full = sum(trial["num_steps"] for trial in trials)
        saved = f"{100 * (1 - steps / full):.0f} %" if full else "-"
        finished = sum(trial["state"] == "done" for trial in trials)
        counts = [str(len(trials)), str(finished), f"{steps:,}", saved] if trials else ["-"] * 4
        rows.append([arm["arm"], *counts, f"{arm['minutes']:.1f}", str(len(arm["seeds"]))])
    header = ["arm", "trials", "finished", "steps", "steps saved", "training minutes", "final runs"]
    total = sum(arm["minutes"] for arm in results["arms"])
    minutes = results.get("budget", {}).get("minutes")
    facts = {key: fact for key, fact in {**dict.fromkeys(_MACHINE), **results["machine"]}.items() if fact is not None}
    machine = ", ".join(_MACHINE.get(key, f"{key} {{}}").format(fact) for key, fact in facts.items())
    text = [
        f"Training minutes are those of an arm's search, or of one final run where nothing was searched; {total:.0f} "
        "in all. Steps saved are those that trials stopped early did not take.",
        f"Machine: {machine}.",
    ]
    if isinstance(minutes, int | float):
        num_runs = len(results.get("runs", (None,)))
        took = f"The command took {minutes:.0f} minutes" if num_runs == 1 else f"{num_runs} runs took {minutes:.0f}"
        text.append(f"{took}; what a killed run took is not in it.")
    return Section("cost", "What did it cost?", grid=Grid(header, rows, frozenset({"arm"})), text=text)


def _use(results: Results, folder: Path) -> Section:
    """Commands that use the sweep's artifacts, and the works to cite."""
    heading = "How to use, share and cite it"
    if all(arm["method"] is None for arm in results["arms"]):
        return Section("use", heading, text=["No final run has ended well: there is nothing to decode."])
    run = best_run(results, None)
    source = results["examples"][0]["source"] if results["examples"] else "..."
    text = [
        f"The best prefix, or the best arm where there is none, is the folder {folder / run / 'artifact'}: JSON and "
        "safetensors, no pickle. Copy it to take it elsewhere; it names its base, its task and its settings. The other "
        "arms' lie beside it in final/.",
        "Below: decode the test split again; write the best prefix for the PEFT library; decode new texts from Python; "
        "the paper and the program to cite.",
    ]
    decode = f"python -m prefixray.decode {folder} --split test\npython -m prefixray.decode {folder} --arm NAME"
    export = f"python -m prefixray.export {folder} --format peft --out my-prefix"
    python = f'from prefixray import Tuned\n\ntuned = Tuned.best("{folder}")\nprint(tuned.generate([{source!r}]))'
    cited = bibtex(results["versions"].get("prefixray", "unknown"))
    return Section("use", heading, text=text, code=[decode, export, python, cited])


def _records(results: Results) -> Section:
    signatures = [f"{label(name)}: {signature}" for name, signature in results["signatures"].items()]
    decoding = ", ".join(f"{key} {value}" for key, value in results["decoding"].items())
    data = f", digest {results['data_digest']}" if "data_digest" in results else ""
    text = [
        f"Task {results['task']}{data}; sweep seed {results['seed']}.",
        f"Base {results['base']} (digest {results['base_digest']}, {results['num_parameters']:,} parameters, "
        f"{results['precision']}).",
        f"Decoding: {decoding}.",
        f"Metrics: {'; '.join(signatures)}.",
        f"Versions: {', '.join(f'{name} {version}' for name, version in results['versions'].items())}.",
        *command_lines(results),
    ]
    grid = search_grid(results["search"]) if results["search"] else None
    return Section("records", "Records", text=text, folded=grid)


def _summary(search: Sequence[SearchTrial]) -> str:
    return "; ".join(f"{arm}: {count_states(trials)}" for arm, trials in _arms(search)) + "."


def _rungs(stored: Stored) -> list[int]:
    """The steps of the rungs; an older record knows only those at which a trial was stopped."""
    known = {trial["rung"]: trial["step"] for trial in stored["search"] if trial["rung"] is not None}
    return stored.get("rungs", [known[rung] for rung in sorted(known)])


def _arms(search: Sequence[SearchTrial]) -> list[tuple[str, list[SearchTrial]]]:
    names = dict.fromkeys(trial["arm"] for trial in search)
    return [(name, [trial for trial in search if trial["arm"] == name]) for name in names]
