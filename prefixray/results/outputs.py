"""Every arm's output on each test source with its score there, as the file `outputs.csv`."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from prefixray.results.record import ExampleOutputs, Results
from prefixray.system.atomic_files import write_whole


def write_outputs(path: Path, every: Sequence[ExampleOutputs], metric: str) -> None:
    """Write a row per source: the source, its references on a line each, then each arm's output and its score."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
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
        rows = list(csv.DictReader(file))
    arms = [arm["arm"] for arm in results["arms"] if rows and arm["arm"] in rows[0]]
    return [
        ExampleOutputs(
            source=row["source"],
            references=row["references"].split("\n"),
            outputs={arm: row[arm] for arm in arms},
            scores={arm: float(score) for arm in arms if (score := row.get(f"{arm}: {results['metric']}"))},
        )
        for row in rows
    ]
