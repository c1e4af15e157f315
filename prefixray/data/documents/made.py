"""From what a document's self-study was made, so that none is made twice.

A document's folder holds `exchanges.jsonl`, `teacher.safetensors` and `study.json`, which says from what they
were made.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefixray.data.documents.exchanges import StudySplit
from prefixray.data.documents.read import Document, read_documents
from prefixray.data.entries import DataConfig
from prefixray.errors import UserError
from prefixray.system.atomic_files import whole_folder
from prefixray.system.path_or_hub import expanded, local_path

FOLDER = "documents"
"""Of a sweep's self-studies, in the folder of its results."""
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


def find_made(runs: Path, document: str, made: Mapping[str, Any]) -> Path | None:
    """The folder of the same self-study in another sweep's results; None where no sweep has it."""
    folders = sorted(study.parent for study in runs.glob(f"*/{FOLDER}/*/{STUDY}"))
    return next((folder for folder in folders if folder.name == document and is_made(folder, made)), None)


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


def check_teacher(task: DataConfig, base_digest: str, base: str) -> None:
    """Raise `UserError` where another base than this one has written the task's exchanges, and is their teacher."""
    if task.exchanges is None or task.path is None:
        return
    for document in read_documents(task.path):
        folder = expanded(task.exchanges) / document.name
        written_by = study_record(folder).get("base_digest", base_digest)
        if written_by != base_digest:
            problem = f"were written by a base with digest {written_by}, and {base} has {base_digest}"
            remedy = "remove task.exchanges, and prefixray sweep has this base write its own"
            raise UserError(f"task.exchanges: {folder}: {problem}; {remedy}")


def _digest(document: Document) -> str:
    return hashlib.sha256(document.text.encode()).hexdigest()


def _name_of(base: str) -> str:
    """A local base is called as its file: its folder may move."""
    path = local_path(base)
    return base if path is None else path.name


def _size(base: str) -> int | None:
    """The bytes of a local base's weights, by which another base under the same name is mostly told; else None."""
    path = local_path(base)
    if path is None:
        return None
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
