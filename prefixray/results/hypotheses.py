"""Hypotheses as text files: writing, reading and scoring them. No model is needed.

A decoded split is three files in the form that the E2E challenge's scorers read: hypotheses, references grouped by
source, and sources.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prefixray.data import Sourced, Task, load_task
from prefixray.data.catalog import CATALOG
from prefixray.data.task_config import TaskConfig
from prefixray.data.texts import one_line
from prefixray.errors import UserError
from prefixray.metrics import Scored, score
from prefixray.metrics.challenge_words import WordForm
from prefixray.metrics.own import is_own
from prefixray.system.atomic_files import write_whole
from prefixray.system.path_or_hub import local_path

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


def check_data(config: TaskConfig, metrics: Sequence[str]) -> str | None:
    """Read a task's local files before Ray starts, so that a wrong row or a missing folder is reported at once.

    Metrics of the user's own score the first references, and a hypothesis without a word, for the same reason. Returns
    the task's digest; None where nothing was read.
    """
    paths = config.paths.values()
    is_local = all(local_path(path) is not None for path in paths) or not CATALOG[config.name].reads_hub
    if not any(map(is_own, metrics)) and not (paths and is_local):
        return None
    task = load_task(config)
    for leak in task.leaks if paths else ():
        logger.warning("task: %s", leak)
    try_own_metrics(metrics, task)
    return task.digest


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


def read_split_record(folder: Path, split: Split) -> Mapping[str, Any]:
    """How a worker has decoded a split into this folder: its `SPLIT.json`; empty where that is missing or damaged."""
    try:
        record = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
