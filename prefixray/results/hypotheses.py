"""Hypotheses as text files: writing, reading and scoring them. No model is needed.

A decoded split is three files in the form that the E2E challenge's scorers read: hypotheses, references grouped by
source, and sources.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prefixray.config.files.found import find_sweep
from prefixray.config.schema import Evaluation
from prefixray.data import Sourced, Task, load_task
from prefixray.data.entries import one_line
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.metrics import Scored, higher_is_better, score
from prefixray.metrics.challenge_words import WordForm
from prefixray.metrics.own import is_own
from prefixray.results.record import is_finished, load_results
from prefixray.system.atomic_files import write_whole
from prefixray.system.path_or_hub import local_path
from prefixray.trial import TrialFolder

logger = logging.getLogger(__name__)

Split = Literal["dev", "test"]
_SUFFIXES = ("hyp", "ref", "src")
_TRIED_SOURCES = 8  # that metrics of the user's own score before anything starts


def split_sources(task: Task, split: Split, document: str | None = None) -> tuple[Sourced, ...]:
    """The sources of a split with their references; those about one document, where that is named."""
    return sources_about(task.dev_sources if split == "dev" else task.test_sources, document)


def sources_about(sources: Sequence[Sourced], document: str | None) -> tuple[Sourced, ...]:
    """The sources about a document; all where none is named."""
    return tuple(sourced for sourced in sources if document is None or sourced.document == document)


def score_all(
    hypotheses: Sequence[str], sources: Sequence[Sourced], metrics: Sequence[str], form: WordForm | None = None
) -> dict[str, Scored]:
    """Every metric's score of the hypotheses against all references of their sources.

    In a challenge's form of texts it is as with the challenge's script: each row of the file counts, against its own
    references alone, where several rows have the same source.
    """
    if form is None:
        references = [sourced.references for sourced in sources]
        return {metric: score(metric, hypotheses, references) for metric in metrics}
    by_row = [sourced.by_row for sourced in sources]
    starts = [0, *accumulate(len(rows) for rows in by_row[:-1])]
    repeated = [text for text, rows in zip(hypotheses, by_row, strict=True) for _ in rows]
    references = [several for rows in by_row for several in rows]
    scored = {metric: score(metric, repeated, references, form) for metric in metrics}
    return {
        metric: replace(rows, statistics=np.add.reduceat(rows.statistics, starts)) for metric, rows in scored.items()
    }


def check_data(config: TaskConfig, metrics: Sequence[str]) -> None:
    """Read a task's local files before Ray starts, so that a wrong row is reported at once.

    Metrics of the user's own score the first references, and a hypothesis without a word, for the same reason.
    """
    paths = config.paths.values()
    if not any(map(is_own, metrics)) and not (paths and all(local_path(path) is not None for path in paths)):
        return
    task = load_task(config)
    for leak in task.leaks if paths else ():
        logger.warning("task: %s", leak)
    try_own_metrics(metrics, task)


def try_own_metrics(metrics: Sequence[str], task: Task) -> None:
    """Have metrics of the user's own score a few references, and a hypothesis without a word.

    Raises `UserError` where one cannot: a sweep would find out at its end.
    """
    few = [list(sourced.references) for sourced in task.test_sources[:_TRIED_SOURCES]]
    for metric in filter(is_own, metrics):
        score(metric, ["", *(references[0] for references in few[1:])], few)


def write_hypotheses(folder: Path, split: str, hypotheses: Sequence[str], sources: Sequence[Sourced]) -> None:
    """Write `SPLIT.hyp`, `SPLIT.ref` and `SPLIT.src`.

    Hypotheses and sources stand one per line. The references of a source stand on consecutive lines, with a blank line
    after them. Line breaks inside a text become spaces.
    """
    assert len(hypotheses) == len(sources), "one hypothesis per source"
    folder.mkdir(parents=True, exist_ok=True)
    groups = ["".join(f"{one_line(text)}\n" for text in sourced.references) for sourced in sources]
    contents = (
        "".join(f"{one_line(text)}\n" for text in hypotheses),
        "\n".join(groups),
        "".join(f"{one_line(sourced.source)}\n" for sourced in sources),
    )
    for suffix, content in zip(_SUFFIXES, contents, strict=True):
        write_whole(folder / f"{split}.{suffix}", content)


def read_hypotheses(folder: Path, split: str) -> list[str]:
    """The hypotheses that `write_hypotheses` wrote. Raises `UserError` where there are none."""
    path = folder / f"{split}.hyp"
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; decode the {split} split first") from None


def best_run(results: Mapping[str, Any], arm: str | None, document: str | None = None) -> str:
    """The folder of an arm's run with the first seed, relative to the sweep's folder.

    Without `arm` it is the best arm that tunes a prefix, or the best of all arms where none does. `document` must be
    named where there are several. Raises `UserError` for an arm that has no artifact, and an unknown document.
    """
    tuned = {entry["arm"]: entry for entry in results["arms"] if entry["method"] is not None}
    if arm is None:
        sign = 1.0 if higher_is_better(results["metric"]) else -1.0
        candidates = [entry for entry in tuned.values() if entry["method"] == "prefix"] or list(tuned.values())
        if not candidates:
            raise UserError("no final run of this sweep has ended well; there is nothing to decode")
        chosen = max(candidates, key=lambda entry: sign * entry["scores"][results["metric"]]["value"])
    elif arm in tuned:
        chosen = tuned[arm]
    else:
        raise UserError(f"--arm: {arm}: no tuned arm of this sweep; they are {', '.join(tuned)}")
    run = min(chosen["seeds"], key=lambda run: run["seed"])
    documents = run.get("documents", {})
    if document is None and len(documents) < 2:
        return str(run["folder"])
    if document not in documents:
        known = f"they are {', '.join(documents)}" if documents else "it has none"
        asked = f"{document}: no document of this sweep" if document else f"name one of {len(documents)} documents"
        raise UserError(f"--document: {asked}; {known}")
    return str(documents[document]["folder"])


@dataclass(frozen=True)
class Found:
    """An artifact, and how its sweep has decoded; one that is named itself has no sweep's settings."""

    artifact: Path
    decoding: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Evaluation = "own"
    machine: Mapping[str, Any] = field(default_factory=dict)

    def num_threads(self, split: Split) -> int | None:
        """The threads with which the split was decoded on a CPU; None where no record says so."""
        beside = read_split_record(self.artifact.parent, split)
        made_on = beside if "num_threads" in beside else self.machine
        count = made_on.get("num_threads")
        return count if made_on.get("device") == "cpu" and isinstance(count, int) else None


def read_split_record(folder: Path, split: Split) -> Mapping[str, Any]:
    """How a worker has decoded a split into this folder: its `SPLIT.json`; empty where that is missing or damaged."""
    try:
        record = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def best_artifact(folder: Path, arm: str | None = None, document: str | None = None) -> Found:
    """The artifact of `best_run` in a sweep's folder, and how its final stage has decoded."""
    results = load_results(folder)
    if not is_finished(results):
        has_any = next(folder.glob("trials/*/*/artifact"), None) is not None
        kept = f"decode one of its trials: {folder}/trials/ARM/NUMBER/artifact"
        none = "its trials have left no artifact, as in every search over several documents: let the sweep go on"
        raise UserError(f"{folder}: no final stage yet; {kept if has_any else none}")
    artifact = TrialFolder(folder / best_run(results, arm, document)).artifact
    evaluation: Evaluation = "paper" if results.get("evaluation") == "paper" else "own"
    return Found(artifact, results["decoding"], evaluation, results["machine"])


def is_artifact(folder: Path) -> bool:
    """Whether a folder holds what was trained."""
    return any(folder.glob("*_config.json"))


def find_artifact(where: str, arm: str | None = None, document: str | None = None) -> Found:
    """The artifact in the folder `where`, or the `best_artifact` of the sweep that `find_sweep` finds there."""
    if is_artifact(Path(where)):
        return Found(Path(where))
    return best_artifact(find_sweep(where), arm, document)
