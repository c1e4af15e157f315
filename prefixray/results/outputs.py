"""Every arm's output on each test source with its score there, as the file `outputs.csv`."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from prefixray.results.record import ExampleOutputs, Results
from prefixray.system.atomic_files import write_whole
from prefixray.system.csv_reader import csv_reader


def write_outputs(path: Path, every: Sequence[ExampleOutputs], metric: str) -> None:
    """Write a row per source: the source, its references on a line each, then each arm's output and its score."""
    file = io.StringIO()
    # Before Python 3.13 a lone carriage return is not quoted by itself, and ends a row for whoever reads it.
    writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    arms = list(every[0]["outputs"])
    writer.writerow(["source", "references", *(name for arm in arms for name in (arm, f"{arm}: {metric}"))])
    for example in every:
        cells = [cell for arm in arms for cell in (example["outputs"][arm], example.get("scores", {}).get(arm))]
        writer.writerow([example["source"], "\n".join(example["references"]), *cells])
    write_whole(path, file.getvalue())


def read_outputs(path: Path, results: Results) -> list[ExampleOutputs]:
    """What `write_outputs` wrote of the arms of these results; nothing where there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv_reader(file))
    found = []
    for source, references, *cells in rows[1:]:
        by_name = dict(zip(rows[0][2:], cells, strict=True))  # without the first two: an arm may be called source
        arms = [arm["arm"] for arm in results["arms"] if arm["arm"] in by_name]
        scores = {arm: float(score) for arm in arms if (score := by_name.get(f"{arm}: {results['metric']}"))}
        outputs = {arm: by_name[arm] for arm in arms}
        found.append(ExampleOutputs(source=source, references=references.split("\n"), outputs=outputs, scores=scores))
    return found
