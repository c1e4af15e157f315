"""Results as tables: the terminal's, Markdown and CSV, all from the one record that the final stage writes.

`results.json` is the source; every number that is printed can be traced to it, and nothing is computed here but shares,
order and rounding. A difference that may be chance is never called a win.
"""

import csv
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefixray.data.catalog import task_title
from prefixray.metrics import DECIMALS, higher_is_better, label
from prefixray.reporting.grid import Grid, escaped
from prefixray.results.compare import NUM_EXAMPLES
from prefixray.results.record import ArmResult, ExampleOutputs, Interval, Results, SearchTrial
from prefixray.results.statistics import resolution
from prefixray.system.records import Scalar

WIDTH = 130  # columns of the longest printed line of prose
SIGNIFICANT = 0.05  # p after Holm's correction below which a difference is marked
SHORT: Mapping[str, str] = {"learning_rate": "lr", "init_token": "init"}  # column headers


def render_text(results: Results) -> str:
    """The final table with its footnotes and a few outputs side by side, for a terminal."""
    parts = [title(results) + "\n" + final_grid(results).text() + "\n" + "\n".join(notes(results))]
    parts += [grid.text() for grid in [group_grid(results)] if grid is not None]
    parts += [_example_text(example, results) for example in results["examples"][:NUM_EXAMPLES]]
    return "\n\n".join(parts)


def render_markdown(results: Results) -> str:
    """The same with the search table and the records that a reader needs to compare with other systems."""
    base = f"Base: `{results['base']}` ({results['precision']}). Sweep seed {results['seed']}."
    signatures = [f"- {label(name)}: `{signature}`" for name, signature in results["signatures"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [
        f"# {results['sweep']}",
        title(results),
        base,
        final_grid(results).markdown(),
        *(grid.markdown() for grid in [group_grid(results)] if grid is not None),
        "\n".join(f"- {escaped(note)}" for note in notes(results)),
        *(["## Outputs", *map(_example_markdown, results["examples"][:NUM_EXAMPLES])] if results["examples"] else []),
        "## Search",
        search_grid(results["search"]).markdown(),
        "## Records",
        "\n".join([*signatures, f"- versions: {versions}"]),
    ]
    return "\n\n".join(parts) + "\n"


def render_note(results: Results) -> str:
    """The final table alone, as Markdown, where there is little room."""
    footnotes = "\n".join(f"- {escaped(note)}" for note in notes(results))
    return f"{title(results)}\n\n{final_grid(results).markdown()}\n\n{footnotes}\n"


def write_csv(results: Results, path: Path) -> None:
    """One row per arm, numbers unrounded."""
    header = ["arm", "method", "num_seeds"]
    for name in results["metrics"]:
        header += [name, f"{name}_low", f"{name}_high", f"{name}_sd"]
    header += ["difference", "difference_low", "difference_high", "p", "p_holm"]
    header += ["trained_parameters", "stored_parameters", "num_trials", "minutes"]
    groups = list(results["arms"][0].get("groups", {}))
    header += [f"{name}_{group}" for group in groups for name in results["metrics"]]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for arm in results["arms"]:
            row: list[str | float | None] = [arm["arm"], arm["method"], len(arm["seeds"])]
            for name in results["metrics"]:
                row += [*_numbers(arm["scores"][name]), arm["sd"].get(name)]
            row += [*_numbers(arm["difference"]), arm["p"], arm["p_holm"]]
            row += [arm["trained_parameters"], arm["stored_parameters"], arm["num_trials"], arm["minutes"]]
            own = [arm.get("groups", {})[group]["scores"] for group in groups]
            row += [scores[name]["value"] for scores in own for name in results["metrics"]]
            writer.writerow(row)


def search_table(search: Sequence[SearchTrial]) -> str:
    """The trials of the search, arm by arm, the best first, for a terminal."""
    return search_grid(search).text()


def search_grid(search: Sequence[SearchTrial]) -> Grid:
    """The trials of the search with the values that differ among them."""
    arms = list(dict.fromkeys(trial["arm"] for trial in search))
    keys = differing_keys([(trial["arm"], trial["config"]) for trial in search])
    ordered = sorted(search, key=lambda trial: (arms.index(trial["arm"]), *_merit(trial)))
    header = ["trial", *(SHORT.get(key, key) for key in keys), "step", "dev/loss", "state"]
    done = {arm: [trial for trial in ordered if trial["arm"] == arm and trial["state"] == "done"] for arm in arms}
    rows: list[list[str]] = []
    for trial in ordered:
        config, loss = trial["config"], trial["dev_loss"]
        state = trial["state"] if trial["rung"] is None else f"{trial['state']} at rung {trial['rung']}"
        best = len(done[trial["arm"]]) > 1 and trial is done[trial["arm"]][0]
        rows.append(
            [
                f"{trial['arm']}/{trial['number']}",
                *(value_text(key, config[key]) if key in config else "" for key in keys),
                f"{trial['step']}/{trial['num_steps']}",
                "-" if loss is None or not math.isfinite(loss) else f"{loss:.3f}",
                f"{state}  * best" if best else state,
            ]
        )
    return Grid(header, rows, frozenset({"trial", "state"}))


def final_grid(results: Results) -> Grid:
    """The final table: an arm per row, in the order of the sweep."""
    arms, primary = results["arms"], results["metric"]
    others = [name for name in results["metrics"] if name != primary]
    digits = DECIMALS.get(primary, 1)
    count = results["num_sources"]
    differences = _intervals([_known(arm["difference"], count) for arm in arms], digits, "+")
    columns: dict[str, list[str]] = {"arm": [arm["arm"] for arm in arms]}
    columns[f"{label(primary)} [95 %]"] = _intervals([_known(arm["scores"][primary], count) for arm in arms], digits)
    if _num_seeds(results) > 1:
        columns["sd"] = [_optional(arm["sd"].get(primary), f".{digits}f") for arm in arms]
    columns[f"vs {results['reference']} [95 %]"] = [
        "reference" if arm["arm"] == results["reference"] else difference
        for arm, difference in zip(arms, differences, strict=True)
    ]
    if any(arm["p_holm"] is not None for arm in arms):
        columns["p (Holm)"] = [_p_text(arm) for arm in arms]
    for name in others:
        columns[label(name)] = [f"{arm['scores'][name]['value']:.{DECIMALS.get(name, 1)}f}" for arm in arms]
    total, most = results["num_parameters"], max(arm["num_trials"] for arm in arms)
    columns["trained (%)"] = [_count_and_share(arm["trained_parameters"], total) for arm in arms]
    columns["stored (%)"] = [_count_and_share(arm["stored_parameters"], total) for arm in arms]
    columns["trials"] = ["- " if arm["method"] is None else _trials_text(arm["num_trials"], most) for arm in arms]
    columns["min"] = ["-" if arm["method"] is None else _minutes_text(arm["minutes"]) for arm in arms]
    return Grid(list(columns), list(zip(*columns.values(), strict=True)), frozenset({"arm"}))


def group_grid(results: Results) -> Grid | None:
    """The scores on each group of the test sources, a row per arm and group; None where the task names no groups."""
    parts = [(arm["arm"], name, group) for arm in results["arms"] for name, group in arm.get("groups", {}).items()]
    if not parts:
        return None
    primary = results["metric"]
    digits = DECIMALS.get(primary, 1)
    differences = _intervals([_known(group["difference"], group["num_sources"]) for _, _, group in parts], digits, "+")
    columns: dict[str, list[str]] = {"arm": [arm for arm, _, _ in parts], "group": [name for _, name, _ in parts]}
    columns["sources"] = [f"{group['num_sources']:,}" for _, _, group in parts]
    scores = [_known(group["scores"][primary], group["num_sources"]) for _, _, group in parts]
    columns[f"{label(primary)} [95 %]"] = _intervals(scores, digits)
    columns[f"vs {results['reference']} [95 %]"] = [
        "reference" if arm == results["reference"] else difference
        for (arm, _, _), difference in zip(parts, differences, strict=True)
    ]
    for name in results["metrics"]:
        if name != primary:
            columns[label(name)] = [
                f"{group['scores'][name]['value']:.{DECIMALS.get(name, 1)}f}" for _, _, group in parts
            ]
    return Grid(list(columns), list(zip(*columns.values(), strict=True)), frozenset({"arm", "group"}))


def differing_keys(trials: Sequence[tuple[str, Mapping[str, Scalar]]]) -> list[str]:
    """The keys whose values differ among the trials of some arm, in their order of appearance.

    Of an arm with a single trial all are kept: nothing is known yet of what will differ.
    """
    keys = list(dict.fromkeys(key for _, values in trials for key in values))
    arms = {arm: [values for name, values in trials if name == arm] for arm, _ in trials}
    return [key for key in keys if any(_differs(key, values) for values in arms.values())]


def value_text(key: str, value: Scalar) -> str:
    """A searched value in at most ten characters."""
    if value is None:
        return "random" if key == "init_token" else "-"
    if isinstance(value, float):
        return scientific(value) if value and abs(value) < 0.1 else f"{value:.3g}"
    text = str(value)
    return text if len(text) <= 10 else text[:8] + ".."


def scientific(value: float) -> str:
    """`2.1e-2`: two digits, no padding of the exponent."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def count_text(count: int) -> str:
    """A count for people: 960, 115k, 1.2M, 134M."""
    for scale, unit in ((1_000, "k"), (1_000_000, "M"), (1_000_000_000, "B")):
        if count < 1_000:
            break
        scaled = count / scale
        if round(scaled) < 1_000:
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return str(count)


def title(results: Results) -> str:
    """What was decoded, how, and how often."""
    beams = results["decoding"].get("num_beams")
    task = task_title(results["task"])
    sources = f"{results['num_sources']} of {results['num_sources_total']} sources"
    seeds = _num_seeds(results)
    search = "greedy" if beams == 1 else f"beam {beams}"
    return f"{task} {results['split']}, {sources}, {search}, {seeds} seed{'s' if seeds > 1 else ''}"


def notes(results: Results) -> list[str]:
    """What must be read with the table."""
    arms, name = results["arms"], label(results["metric"])
    most = max(arms, key=lambda arm: arm["num_trials"])
    found = list(results.get("notes", ()))
    if any(arm["method"] is not None and arm["num_trials"] < most["num_trials"] for arm in arms):
        found.append(f"+ searched less than {most['arm']}: not a fair comparison")
    if unequal := _unequal_training(arms):
        found.append(unequal)
    if any(_is_significant(arm) for arm in arms):
        both = f"p < {SIGNIFICANT} after Holm's correction, and an interval clear of 0"
        found.append(f"* differs from {results['reference']}: {both}")
    if sum(arm["method"] is not None for arm in arms) < 2:
        return found
    if _num_seeds(results) == 1:
        found.append("one seed: intervals, p and * are about these trained models; other seeds would give others")
    return [*found, f"{_told_apart(results, name)}.", _verdict(results)]


def _told_apart(results: Results, name: str) -> str:
    """The smallest differences that these sources can tell apart, and with one seed what all of them could."""
    count, total = results["num_sources"], results["num_sources_total"]
    if count == 1:
        return "one source tells nothing apart"
    differences = [arm["difference"] for arm in results["arms"] if arm["method"] is not None]
    least = [resolution(**difference) for difference in differences if difference is not None]
    told = f"{count} sources cannot tell apart differences below {_range(least, results)} {name}"
    if count < total and _num_seeds(results) == 1:
        told += f"; all {total} could tell about {_range([one * math.sqrt(count / total) for one in least], results)}"
    return told


def _range(numbers: Sequence[float], results: Results) -> str:
    """`3.1`, or `1.6 to 9.1` where numbers differ."""
    digits = DECIMALS.get(results["metric"], 1)
    return " to ".join(dict.fromkeys(f"{number:.{digits}f}" for number in (min(numbers), max(numbers))))


def _verdict(results: Results) -> str:
    """Who won, if the distance to the second was tested on several seeds each, told from 0, and is fair."""
    metric, reference = results["metric"], results["reference"]
    sign = -1 if higher_is_better(metric) else 1
    tuned = [arm for arm in results["arms"] if arm["method"] is not None]
    ranked = sorted(tuned, key=lambda arm: sign * arm["scores"][metric]["value"])
    best, second = ranked[:2]
    gap = abs(best["scores"][metric]["value"] - second["scores"][metric]["value"])
    tested = second if best["arm"] == reference else best if second["arm"] == reference else None
    text = f"{gap:.{DECIMALS.get(metric, 1)}f} {label(metric)}"
    apart = f"No winner: {best['arm']} and {second['arm']} are {text} apart"
    if tested is None:
        return f"{apart}, but were not tested against each other."
    if not _is_significant(tested):
        return f"{apart}, which may be chance."
    if best["num_trials"] != second["num_trials"]:
        return f"{apart}, but were not searched alike."
    if min(len(best["seeds"]), len(second["seeds"])) == 1:
        return f"{apart}, but with one seed."
    return f"Winner: {best['arm']}, {text} ahead of {second['arm']}."


def _unequal_training(arms: Sequence[ArmResult]) -> str | None:
    """What each arm was trained on, where that differs."""
    parts = ("num_steps", "batch_size", "grad_accumulation")
    given = {arm["arm"]: [arm["config"].get(part) for part in parts] for arm in arms if arm["method"] is not None}
    counts = {name: math.prod(n for n in own if isinstance(n, int)) for name, own in given.items()}
    if len(set(counts.values())) < 2:
        return None
    return "trained on unequal numbers of examples: " + ", ".join(f"{name} {n:,}" for name, n in counts.items())


def _is_significant(arm: ArmResult) -> bool:
    """A mark needs both: p takes the trained models as given, the interval resamples their seeds too."""
    difference = arm["difference"]
    if arm["p_holm"] is None or difference is None:
        return False
    return arm["p_holm"] < SIGNIFICANT and (difference["low"] > 0 or difference["high"] < 0)


def _num_seeds(results: Results) -> int:
    return max(len(arm["seeds"]) for arm in results["arms"])


def _example_text(example: ExampleOutputs, results: Results) -> str:
    names = [arm["arm"] for arm in results["arms"] if arm["arm"] in example["outputs"]]
    outputs = [("reference", example["references"][0]), *((name, example["outputs"][name]) for name in names)]
    width = max(len(name) for name, _ in outputs) + 1
    lines = [_wrapped(example["source"], "  ")]
    lines += [_wrapped(output, f"  {name + ':':<{width}} ") for name, output in outputs]
    return "\n".join(lines)


def _example_markdown(example: ExampleOutputs) -> str:
    outputs = [("reference", example["references"][0]), *example["outputs"].items()]
    lines = [f"`{example['source']}`", ""]
    return "\n".join([*lines, *(f"- {name}: {escaped(' '.join(output.split()))}" for name, output in outputs)])


def _wrapped(text: str, first: str) -> str:
    """One paragraph under its heading, later lines aligned with the first."""
    return (
        textwrap.fill(" ".join(text.split()), WIDTH, initial_indent=first, subsequent_indent=" " * len(first)) or first
    )


def _merit(trial: SearchTrial) -> tuple[int, int, float]:
    """Sorts finished trials by loss, then stopped ones by how far they came, then what failed."""
    loss = trial["dev_loss"]
    value = math.inf if loss is None or not math.isfinite(loss) else loss
    order = ("done", "running", "stopped")
    rank = order.index(trial["state"]) if trial["state"] in order else len(order)
    return rank, 0 if rank == 0 else -trial["step"], value


def _differs(key: str, trials: Sequence[Mapping[str, Scalar]]) -> bool:
    first = trials[0]
    return key in first if len(trials) == 1 else len({(key in values, values.get(key)) for values in trials}) > 1


def _intervals(intervals: Sequence[Interval | None], digits: int, sign: str = "") -> list[str]:
    """`58.3 [51.6, 64.4]` for each, the numbers padded to the widest."""
    shown = [
        [f"{number:{sign}.{digits}f}" for number in _numbers(interval) if number is not None] for interval in intervals
    ]
    width = max((len(number) for numbers in shown for number in numbers), default=0)
    padded = [[number.rjust(width) for number in numbers] for numbers in shown]
    return [f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" if numbers else "-" for numbers in padded]


def _known(interval: Interval | None, num_sources: int) -> Interval | None:
    """The interval as it can be known: from one source nothing follows for others."""
    if interval is None or num_sources > 1:
        return interval
    return Interval(value=interval["value"], low=-math.inf, high=math.inf)


def _numbers(interval: Interval | None) -> list[float | None]:
    return [None] * 3 if interval is None else [interval["value"], interval["low"], interval["high"]]


def _optional(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _p_text(arm: ArmResult) -> str:
    p = arm["p_holm"]
    if p is None:
        return "-  "
    return ("<0.001" if p < 0.001 else f"{p:.3f}") + (" *" if _is_significant(arm) else "  ")


def _count_and_share(count: int, total: int) -> str:
    """`115k (0.09)`: how many, and what percentage of the base."""
    if count == 0:
        return "0"
    share = 100 * count / total
    digits = 2 if share < 0.095 else 1 if share < 9.5 else 0
    return f"{count_text(count)} ({'<0.01' if share < 0.005 else f'{share:.{digits}f}'})"


def _trials_text(num_trials: int, most: int) -> str:
    return f"{num_trials}+" if num_trials < most else f"{num_trials} "


def _minutes_text(minutes: float) -> str:
    return f"{minutes:.1f}" if minutes < 99.95 else f"{minutes:.0f}"
