"""From what a document's self-study was made, so that none is made twice.

A document's folder holds `exchanges.jsonl`, `teacher.safetensors` and `study.json`, which says from what they
were made.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefixray.data.documents.exchanges import StudySplit
from prefixray.data.documents.read import Document
from prefixray.data.entries import DataConfig
from prefixray.errors import UserError
from prefixray.system.atomic_files import whole_folder
from prefixray.system.path_or_hub import digest_of_base, find_base, is_commit, local_path, weights_of

logger = logging.getLogger(__name__)

FOLDER = "documents"
"""Of a sweep's self-studies, in the folder of its results."""
SEARCHED = "searched_documents.json"
"""In the folder of a sweep's results: the names of the documents that its search trains on."""
STUDY = "study.json"
RECIPE = 1
"""Counts the ways in which questions and answers were ever made: another one makes other files."""

MOST_QUESTION_TOKENS = 40
"""That the base writes of a question, behind its first words."""


def made_from(document: Document, task: DataConfig, *, base: str, precision: str, seed: int) -> dict[str, Any]:
    """All that the self-study of a document depends on, as plain values."""
    keys = ("chunk_tokens", "prompts", "template", "instruction", "separator", "max_source_tokens", "max_target_tokens")
    settings = {key: value for key, value in task.model_dump(mode="json").items() if key in keys}
    return {
        "recipe": RECIPE,
        "base": {"name": _name_of(base), "bytes": _size(base), "precision": precision},
        "document": {"name": document.name, "sha256": _digest(document)},
        "settings": {**settings, "num_questions": num_studied(task)},
        "seed": seed,
    }


def num_studied(task: DataConfig) -> dict[StudySplit, int]:
    """Questions of each split that self-study makes: none for test, where the user's own file is the test."""
    wanted = task.num_questions
    return {"train": wanted.train, "dev": wanted.dev, "test": wanted.test if task.test is None else 0}


def is_made(folder: Path, made: Mapping[str, Any]) -> bool:
    """Whether the folder holds a self-study that was made from the same."""
    return study_record(folder).get("made_from") == made


def find_made(runs: Path, document: str, made: Mapping[str, Any], base: str) -> Path | None:
    """The folder of the same self-study in another sweep's results; None where no sweep has it.

    Of a base on this machine it must be by the very same weights: another one may have its name and its size.
    """
    folders = sorted(study.parent for study in runs.glob(f"*/{FOLDER}/*/{STUDY}"))
    alike = [folder for folder in folders if folder.name == document and is_made(folder, made)]
    path = find_base(base)
    if not alike or isinstance(path, str):
        return next(iter(alike), None)
    digest = digest_of_base(path)
    return next((folder for folder in alike if study_record(folder).get("base_digest") == digest), None)


def copy_made(source: Path, folder: Path) -> None:
    """Copy a self-study, whole or not at all."""
    with whole_folder(folder) as scratch:
        for file in source.iterdir():
            shutil.copyfile(file, scratch / file.name)


def study_record(folder: Path) -> dict[str, Any]:
    """What `study.json` holds; empty where the file is missing or damaged."""
    try:
        record = json.loads((folder / STUDY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def is_of_another_text(folder: Path, document: Document) -> bool:
    """Whether the self-study in a folder is of another text under the document's name; False where it does not say."""
    known: Mapping[str, str] = study_record(folder).get("made_from", {}).get("document", {})
    return known.get("sha256", _digest(document)) != _digest(document)


def check_teacher(studies: Path, names: Iterable[str], *, base: str, digest: str, is_own: bool) -> None:
    """Raise `UserError` where another base than this one has written a document's exchanges, and is its teacher.

    `studies` has a folder for each of the documents `names`; `is_own`: it is in the sweep's own results. Another commit
    of the same repository of the hub may have the same weights: it is only logged.
    """
    for folder in (studies / name for name in names):
        record = study_record(folder)
        written_by = record.get("base_digest", digest)
        is_of_hub = is_commit(written_by) and is_commit(digest)
        if written_by == digest:
            continue
        problem = f"were written by a base with digest {written_by}, and {base} has {digest}"
        if is_of_hub and record.get("made_from", {}).get("base", {}).get("name") == base:
            logger.warning("%s: %s: another commit, which may have changed no weight", folder, problem)
            continue
        given = "remove task.exchanges, and prefixray sweep has this base write its own"
        remedy = f"delete {folder}, or give this sweep another name" if is_own else given
        raise UserError(f"{folder}: its exchanges {problem}; {remedy}")


def _digest(document: Document) -> str:
    return hashlib.sha256(document.text.encode()).hexdigest()


def _name_of(base: str) -> str:
    """A local base is called as its file: its folder may move."""
    path = local_path(base)
    return base if path is None else path.name


def _size(base: str) -> int | None:
    """The bytes of a local base's weights, by which another base under the same name is mostly told; else None."""
    path = local_path(base)
    return None if path is None else sum(file.stat().st_size for file in weights_of(path))
