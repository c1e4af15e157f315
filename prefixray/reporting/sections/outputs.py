"""What the arms have written: all outputs, to be searched and sorted; without scripts, those farthest apart."""

from pathlib import Path

from prefixray.metrics import decimals, higher_is_better, label
from prefixray.reporting.sections.section import AllOutputs, Example, Output, Section
from prefixray.results.outputs import read_outputs
from prefixray.results.record import ExampleOutputs, Results

NUM_SHOWN = 20  # sources with their outputs where no script runs
_MOST_CHARACTERS = 3_000_000  # of texts in a page


def outputs_section(results: Results, folder: Path) -> Section:
    """The outputs on all sources that a page can hold, and on those farthest apart."""
    metric, reference = results["metric"], results["reference"]
    heading = "What do the outputs look like?"
    browser, left_out = _browser(results, folder)
    chosen = [example for example in results["examples"] if "arm" in example]
    if not chosen:
        first = [_example(example, results) for example in results["examples"][:NUM_SHOWN]]
        about = ["The first sources of the split."]
        return Section("outputs", heading, text=left_out, about_examples=about, examples=first, browser=browser)
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
        _example(
            example, results, f"{example['arm']} {distance:.{decimals(metric)}f} {label(metric)} {where} {reference}"
        )
        for where, group in (("behind", behind), ("ahead of", ahead))
        for example in group
        for distance in [abs(_distance(example, reference))]
    ]
    return Section(
        "outputs", heading, text=left_out, about_examples=text, examples=examples[:NUM_SHOWN], browser=browser
    )


def _browser(results: Results, folder: Path) -> tuple[AllOutputs | None, list[str]]:
    """The outputs of `outputs.csv`; None where an older sweep has no such file. Then what a page leaves out of them."""
    found = read_outputs(folder / "outputs.csv", results)
    if not found:
        return None, []
    arms = [arm["arm"] for arm in results["arms"] if arm["arm"] in found[0]["outputs"]]
    ordered = sorted(found, key=_spread, reverse=True)
    shown, room = 0, _MOST_CHARACTERS
    for example in ordered:
        room -= sum(map(len, (example["source"], *example["references"], *example["outputs"].values())))
        if room < 0:
            break
        shown += 1
    whole = shown == len(found)
    examples = [_example(example, results) for example in (found if whole else ordered[:shown])]
    text = f"This page has the {shown:,} sources on which arms differ most; outputs.csv has all {len(found):,}."
    metric, reference = results["metric"], results["reference"]
    browser = AllOutputs(arms, reference, label(metric), decimals(metric), higher_is_better(metric), examples)
    return browser, [] if whole else [text]


def _spread(example: ExampleOutputs) -> float:
    scores = example.get("scores", {}).values()
    return max(scores, default=0.0) - min(scores, default=0.0)


def _example(example: ExampleOutputs, results: Results, why: str = "") -> Example:
    """An example with the outputs in the order of the arms."""
    scores = example.get("scores", {})
    names = [arm["arm"] for arm in results["arms"] if arm["arm"] in example["outputs"]]
    digits = decimals(results["metric"])
    outputs = [Output(n, example["outputs"][n], f"{scores[n]:.{digits}f}" if n in scores else "") for n in names]
    return Example(example["source"], example["references"], outputs, why)


def _distance(example: ExampleOutputs, reference: str) -> float:
    return example["scores"][example["arm"]] - example["scores"][reference]
