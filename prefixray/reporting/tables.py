"""Results as tables, for a terminal, as Markdown and as CSV.

Every number comes from `results.json`, which the final stage writes; only shares, order and rounding are computed here.
"""

import csv
import io
import json
import math
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from typing import Literal

from prefixray.data.catalog import task_title
from prefixray.metrics import decimals, label
from prefixray.reporting.grid import SHORT, Grid, count_text, differing_keys, escaped, one_line, value_text
from prefixray.reporting.in_context import kv_column
from prefixray.reporting.verdict import is_significant, notes, num_seeds
from prefixray.results.examples import NUM_EXAMPLES
from prefixray.results.record import IN_CONTEXT, ArmResult, ExampleOutputs, Interval, Results, SearchTrial, tuned_arms
from prefixray.results.statistics import p_text

_PLAIN_COLUMNS: Sequence[Literal["p", "p_holm", "trained_parameters", "stored_parameters", "num_trials", "minutes"]] = (
    "p",
    "p_holm",
    "trained_parameters",
    "stored_parameters",
    "num_trials",
    "minutes",
)
WIDTH = 130  # columns of the longest printed line of prose


def render_text(results: Results) -> str:
    """For a terminal: the final table with its notes, and a few outputs side by side."""
    parts = [title(results) + "\n" + final_grid(results).text() + "\n" + "\n".join(notes(results))]
    parts += [grid.text() for grid in (seed_grid(results), group_grid(results)) if grid is not None]
    parts += [_example_text(example, results) for example in results["examples"][:NUM_EXAMPLES]]
    return "\n\n".join(parts)


def render_markdown(results: Results) -> str:
    """As Markdown: the same with the table of the search, and with the records that a comparison with others needs."""
    base = f"Base: `{results['base']}` ({results['precision']}). Sweep seed {results['seed']}."
    signatures = [f"- {label(name)}: `{signature}`" for name, signature in results["signatures"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [
        f"# {results['sweep']}",
        title(results),
        base,
        final_grid(results).markdown(),
        *(grid.markdown() for grid in (seed_grid(results), group_grid(results)) if grid is not None),
        "\n".join(f"- {escaped(note)}" for note in notes(results)),
        *(["## Outputs", *map(_example_markdown, results["examples"][:NUM_EXAMPLES])] if results["examples"] else []),
        "## Search",
        search_grid(results["search"]).markdown(),
        "## Records",
        "\n".join([*signatures, f"- versions: {versions}", *(f"- {escaped(line)}" for line in command_lines(results))]),
    ]
    return "\n\n".join(parts) + "\n"


def render_latex(results: Results) -> str:
    """As LaTeX, for a paper: the final table and the seeds' scores, with the notes as comments; needs `booktabs`."""
    comments = "\n".join(f"% {line}" for line in (title(results), *notes(results)))
    grids = [final_grid(results), *(grid for grid in (seed_grid(results), group_grid(results)) if grid is not None)]
    return "\n\n".join([comments, *(grid.latex() for grid in grids)])


def render_note(results: Results) -> str:
    """As Markdown: the final table with its notes alone, for MLflow's note of a run."""
    footnotes = "\n".join(f"- {escaped(note)}" for note in notes(results))
    return f"{title(results)}\n\n{final_grid(results).markdown()}\n\n{footnotes}\n"


def csv_rows(results: Results) -> list[dict[str, object]]:
    """One row per arm, by column, numbers unrounded; `bleu[GROUP]` is the score on a group, whatever its name."""
    rows, names, count = [], {arm["arm"] for arm in results["arms"]}, results["num_sources"]
    for arm in results["arms"]:
        row: dict[str, object] = {"arm": arm["arm"], "method": arm["method"], "num_seeds": len(arm["seeds"])}
        for name in results["metrics"]:
            row |= _interval_columns(name, arm["scores"][name], count) | {f"{name}_sd": arm["sd"].get(name)}
        row |= _interval_columns("difference", arm["difference"], count)
        row |= {key: arm[key] for key in _PLAIN_COLUMNS}
        if IN_CONTEXT in names:
            row |= {"kv_bytes": arm.get("kv_bytes"), **_interval_columns("to_context", arm.get("to_context"), count)}
        for group, part in arm.get("groups", {}).items():
            row |= {f"{name}[{group}]": part["scores"][name]["value"] for name in results["metrics"]}
        rows.append(row)
    return rows


def trial_rows(search: Sequence[SearchTrial]) -> list[dict[str, object]]:
    """One row per trial of the search, by column: arm, number, the searched values, how it ended."""
    left_out = ("arm", "number", "config", "curve")
    return [
        {"arm": trial["arm"], "number": trial["number"], **trial["config"]}
        | {key: json.dumps(value) if key == "pauses" else value for key, value in trial.items() if key not in left_out}
        for trial in search
    ]


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows as CSV, under every column that one of them has."""
    file = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(file, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def search_table(search: Sequence[SearchTrial]) -> str:
    """For a terminal: the trials of the search, arm by arm, the best first."""
    return search_grid(search).text()


def search_grid(search: Sequence[SearchTrial]) -> Grid:
    """The trials of the search with the values that differ among them."""
    arms = list(dict.fromkeys(trial["arm"] for trial in search))
    keys = differing_keys([(trial["arm"], trial["config"]) for trial in search])
    ordered = sorted(search, key=lambda trial: (arms.index(trial["arm"]), *_rank(trial)))
    header = ["trial", *(SHORT.get(key, key) for key in keys), "step", "dev/loss", "state"]
    done = {arm: [trial for trial in ordered if trial["arm"] == arm and trial["state"] == "done"] for arm in arms}
    rows: list[list[str]] = []
    for trial in ordered:
        config = trial["config"]
        is_best = len(done[trial["arm"]]) > 1 and trial is done[trial["arm"]][0]
        rows.append(
            [
                f"{trial['arm']}/{trial['number']}",
                *(value_text(key, config[key]) if key in config else "" for key in keys),
                f"{trial['step']}/{trial['num_steps']}",
                loss_text(trial),
                state_text(trial) + ("  * best" if is_best else ""),
            ]
        )
    return Grid(header, rows, frozenset({"trial", "state"}))


def interval_texts(intervals: Sequence[tuple[Interval | None, int]], digits: int, sign: str = "") -> list[str]:
    """`58.3 [51.6, 64.4]` for each interval, the numbers padded to the widest; beside each its number of sources."""
    texts = [
        [f"{number:{sign}.{digits}f}" for number in _numbers(interval, count) if number is not None]
        for interval, count in intervals
    ]
    width = max((len(text) for row in texts for text in row), default=0)
    padded = [[text.rjust(width) for text in row] for row in texts]
    return [f"{row[0]} [{row[1]}, {row[2]}]" if row else "-" for row in padded]


def known_interval(interval: Interval, num_sources: int) -> Interval:
    """The interval as far as it is known: one source says nothing of others, so its interval is infinite."""
    return interval if num_sources > 1 else Interval(value=interval["value"], low=-math.inf, high=math.inf)


def state_text(trial: SearchTrial) -> str:
    """`done`, or `stopped at rung 1`."""
    return trial["state"] if trial["rung"] is None else f"{trial['state']} at rung {trial['rung']}"


def loss_text(trial: SearchTrial) -> str:
    """The last dev loss of a trial, with ~ where it is over a sample of dev, or a dash."""
    loss, about = trial["dev_loss"], "~" if trial.get("is_sampled") else ""
    return "-" if loss is None or not math.isfinite(loss) else f"{about}{loss:.3f}"


def final_grid(results: Results) -> Grid:
    """The final table: an arm per row, in the order of the sweep."""
    arms, primary, count = results["arms"], results["metric"], results["num_sources"]
    digits = decimals(primary)
    names = [arm["arm"] for arm in arms]
    columns = {"arm": names}
    columns[f"{label(primary)} [95 %]"] = interval_texts([(arm["scores"][primary], count) for arm in arms], digits)
    if num_seeds(results) > 1:
        deviations = [arm["sd"].get(primary) for arm in arms]
        columns["sd"] = ["-" if sd is None else f"{sd:.{digits}f}" for sd in deviations]
    columns |= _differences(results, names, [(arm["difference"], count) for arm in arms])
    if any(arm["p_holm"] is not None for arm in arms):
        columns["p (Holm)"] = [_corrected_text(arm) for arm in arms]
    columns |= _other_scores(results, [arm["scores"] for arm in arms])
    total, most = results["num_parameters"], max(arm["num_trials"] for arm in arms)
    columns["trained (%)"] = [_count_and_share(arm["trained_parameters"], total) for arm in arms]
    columns["stored (%)"] = [_count_and_share(arm["stored_parameters"], total) for arm in arms]
    columns |= kv_column(results)
    columns["trials"] = ["- " if arm["method"] is None else _trials_text(arm["num_trials"], most) for arm in arms]
    columns["min"] = ["-" if arm["method"] is None else _minutes_text(arm["minutes"]) for arm in arms]
    return Grid(list(columns), list(zip(*columns.values(), strict=True)), frozenset({"arm"}))


def seed_grid(results: Results) -> Grid | None:
    """The scores of each final run, a row per arm and seed; None where each arm has one seed."""
    if num_seeds(results) == 1:
        return None
    runs = [(arm["arm"], seed) for arm in tuned_arms(results) for seed in arm["seeds"]]
    columns = {"arm": [arm for arm, _ in runs], "seed": [str(seed["seed"]) for _, seed in runs]}
    names = sorted(results["metrics"], key=lambda name: name != results["metric"])
    for name in names:
        scores = [seed["scores"].get(name) for _, seed in runs]
        digits = decimals(name)
        columns[label(name)] = ["-" if score is None else f"{score:.{digits}f}" for score in scores]
    losses = [seed["dev_loss"] for _, seed in runs]
    columns["dev/loss"] = ["-" if loss is None else f"{loss:.3f}" for loss in losses]
    return Grid(list(columns), list(zip(*columns.values(), strict=True)), frozenset({"arm"}))


def command_lines(results: Results) -> list[str]:
    """For each run of the command that trained something: when, how long, from which commit and by which words."""
    return [
        f"Run of {run['began']}, {run['minutes']:.0f} minutes, commit {run['commit'] or 'not known'}: "
        f"{shlex.join(run['command']) or 'from Python'}"
        for run in results.get("runs", ())
        if run["began"]
    ]


def group_grid(results: Results) -> Grid | None:
    """The scores on each group of the test sources, a row per arm and group; None where the task names no groups."""
    parts = [(arm["arm"], name, group) for arm in results["arms"] for name, group in arm.get("groups", {}).items()]
    if not parts:
        return None
    primary = results["metric"]
    names, groups = [arm for arm, _, _ in parts], [group for _, _, group in parts]
    columns = {"arm": names, "group": [name for _, name, _ in parts]}
    columns["sources"] = [f"{group['num_sources']:,}" for group in groups]
    scores = [(group["scores"][primary], group["num_sources"]) for group in groups]
    columns[f"{label(primary)} [95 %]"] = interval_texts(scores, decimals(primary))
    columns |= _differences(results, names, [(group["difference"], group["num_sources"]) for group in groups])
    columns |= _other_scores(results, [group["scores"] for group in groups])
    return Grid(list(columns), list(zip(*columns.values(), strict=True)), frozenset({"arm", "group"}))


def title(results: Results) -> str:
    """The task, the number of sources, the decoding and the number of seeds."""
    beams = results["decoding"].get("num_beams")
    task = task_title(results["task"])
    sources = f"{results['num_sources']} of {results['num_sources_total']} sources"
    seeds = num_seeds(results)
    search = "greedy" if beams == 1 else f"beam {beams}"
    return f"{task} {results['split']}, {sources}, {search}, {seeds} seed{'s' if seeds > 1 else ''}"


def _example_text(example: ExampleOutputs, results: Results) -> str:
    names = [arm["arm"] for arm in results["arms"] if arm["arm"] in example["outputs"]]
    outputs = [("reference", example["references"][0]), *((name, example["outputs"][name]) for name in names)]
    width = max(len(name) for name, _ in outputs) + 1
    lines = [_wrapped(example["source"], "  ")]
    lines += [_wrapped(output, f"  {name + ':':<{width}} ") for name, output in outputs]
    return "\n".join(lines)


def _example_markdown(example: ExampleOutputs) -> str:
    outputs = [("reference", example["references"][0]), *example["outputs"].items()]
    lines = [f"**{escaped(one_line(example['source']))}**", ""]
    return "\n".join([*lines, *(f"- {name}: {escaped(one_line(output))}" for name, output in outputs)])


def _wrapped(text: str, first: str) -> str:
    """One paragraph under its heading, later lines aligned with the first."""
    return textwrap.fill(one_line(text), WIDTH, initial_indent=first, subsequent_indent=" " * len(first)) or first


def _rank(trial: SearchTrial) -> tuple[int, int, float]:
    """A key for sorting: finished trials by their loss, then those not ended and those stopped, by their step."""
    loss = trial["dev_loss"]
    value = math.inf if loss is None or not math.isfinite(loss) else loss
    order = ("done", "running", "paused", "stopped")
    rank = order.index(trial["state"]) if trial["state"] in order else len(order)
    return rank, 0 if rank == 0 else -trial["step"], value


def _differences(
    results: Results, arms: Sequence[str], differences: Sequence[tuple[Interval | None, int]]
) -> dict[str, list[str]]:
    """The column of differences to the reference, a row per name in `arms`."""
    reference = results["reference"]
    cells = interval_texts(differences, decimals(results["metric"]), "+")
    texts = ["reference" if arm == reference else cell for arm, cell in zip(arms, cells, strict=True)]
    return {f"vs {reference} [95 %]": texts}


def _other_scores(results: Results, rows: Sequence[Mapping[str, Interval]]) -> dict[str, list[str]]:
    """A column for each metric besides the primary one."""
    names = [name for name in results["metrics"] if name != results["metric"]]
    return {label(name): [f"{row[name]['value']:.{decimals(name)}f}" for row in rows] for name in names}


def _numbers(interval: Interval | None, num_sources: int) -> list[float | None]:
    known = None if interval is None else known_interval(interval, num_sources)
    return [None] * 3 if known is None else [known["value"], known["low"], known["high"]]


def _corrected_text(arm: ArmResult) -> str:
    p = arm["p_holm"]
    return "-  " if p is None else p_text(p) + (" *" if is_significant(arm) else "  ")


def _interval_columns(name: str, interval: Interval | None, num_sources: int) -> dict[str, object]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), _numbers(interval, num_sources), strict=True))


def _count_and_share(count: int, total: int) -> str:
    """`115k (0.09)`: a number of parameters, and its percentage of the base's."""
    if count == 0:
        return "0"
    share = 100 * count / total
    digits = 2 if share < 0.095 else 1 if share < 9.5 else 0
    return f"{count_text(count)} ({'<0.01' if share < 0.005 else f'{share:.{digits}f}'})"


def _trials_text(num_trials: int, most: int) -> str:
    return f"{num_trials}+" if num_trials < most else f"{num_trials} "


def _minutes_text(minutes: float) -> str:
    return f"{minutes:.1f}" if minutes < 99.95 else f"{minutes:.0f}"
