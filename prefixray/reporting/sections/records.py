"""What a sweep cost, how its artifacts are used, and what a comparison with others needs."""

from pathlib import Path

from prefixray.metrics import label
from prefixray.reporting.grid import Grid
from prefixray.reporting.sections.section import Link, Section
from prefixray.reporting.tables import command_lines, csv_rows, csv_text, search_grid, trial_rows
from prefixray.results.artifacts import best_run
from prefixray.results.citation import bibtex
from prefixray.results.record import Results, document_to_name, naming, runs_of, tuned_arms

_MACHINE = {  # texts of the machine's facts; a fact that is not here follows under its own name
    "cpu": "{}",
    "num_cpus": "{} CPUs",
    "memory_gib": "{} GiB",
    "device": "trained on {}",
    "num_threads": "{} threads a worker",
    "python": "Python {}",
    "system": "{}",
}


def cost_section(results: Results) -> Section:
    """The trials, steps and minutes of every arm, and the machine."""
    rows = []
    for arm in tuned_arms(results):
        trials = [trial for trial in results["search"] if trial["arm"] == arm["arm"]]
        steps = sum(trial["step"] for trial in trials)
        full = sum(trial["num_steps"] for trial in trials)
        saved = f"{100 * (1 - steps / full):.0f} %" if full else "-"
        finished = sum(trial["state"] == "done" for trial in trials)
        counts = [str(len(trials)), str(finished), f"{steps:,}", saved] if trials else ["-"] * 4
        num_runs = sum(len(runs_of(seed)) for seed in arm["seeds"])
        rows.append([arm["arm"], *counts, f"{arm['minutes']:.1f}", str(num_runs)])
    header = ["arm", "trials", "finished", "steps", "steps saved", "training minutes", "final runs"]
    total = sum(arm["minutes"] for arm in results["arms"])
    minutes = results.get("budget", {}).get("minutes")
    facts = {key: fact for key, fact in {**dict.fromkeys(_MACHINE), **results["machine"]}.items() if fact is not None}
    machine = ", ".join(_MACHINE.get(key, f"{key} {{}}").format(fact) for key, fact in facts.items())
    unsearched = "one final run" if document_to_name(results) is None else "the final runs of one seed"
    text = [
        f"Training minutes are those of an arm's search, or of {unsearched} where nothing was searched; {total:.0f} "
        "in all. Steps saved are those that trials stopped early did not take.",
        f"Machine: {machine}.",
    ]
    if isinstance(minutes, int | float):
        count = len(results.get("runs", (None,)))
        took = f"{'The command' if count == 1 else f'{count} runs of the command'} took {minutes:.0f} minutes"
        text.append(f"{took}; what a killed run took is not in it.")
    return Section("cost", "What did it cost?", grid=Grid(header, rows, frozenset({"arm"})), text=text)


def use_section(results: Results, folder: Path) -> Section:
    """Commands that use the sweep's artifacts, and the works to cite."""
    heading = "How to use, share and cite it"
    if not tuned_arms(results):
        return Section("use", heading, text=["No final run has ended well: there is nothing to decode."])
    named = document_to_name(results)
    run = best_run(results, None, named)
    source = results["examples"][0]["source"] if results["examples"] else "..."
    text = [
        f"The best prefix, or the best arm where there is none, is the folder {folder / run / 'artifact'}: JSON and "
        "safetensors, no pickle. Copy it to take it elsewhere; it names its base, its task and its settings. The other "
        "arms' lie beside it in final/.",
        "Below: decode the test split again; write the best prefix for the PEFT library; decode new texts from Python; "
        "the paper and the program to cite.",
    ]
    option, argument = naming(named)
    decode = f"prefixray decode {folder}{option} --split test\nprefixray decode {folder}{option} --arm NAME"
    export = f"prefixray export {folder}{option} --format peft --out my-prefix"
    loaded = f'Tuned.best("{folder}"{argument})'
    python = f"from prefixray import Tuned\n\ntuned = {loaded}\nprint(tuned.generate([{source!r}]))"
    cited = bibtex(results["versions"].get("prefixray", "unknown"))
    return Section("use", heading, text=text, code=[decode, export, python, cited])


def records_section(results: Results, folder: Path) -> Section:
    """Digests, settings, versions, the runs of the command, all trials, and files with numbers."""
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
    links = [Link("results.csv", "the table, a row per arm, numbers unrounded", csv_text(csv_rows(results)))]
    if grid is not None:
        links.append(Link("trials.csv", "the trials of the search", csv_text(trial_rows(results["search"]))))
    if (folder / "outputs.csv").is_file():
        links.append(Link("outputs.csv", "every output with its score on its source, in the sweep's folder"))
    return Section("records", "Records", text=text, links=links, folded=grid)
