"""Sets of summaries in small files, and the task that each of them is."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from prefixray.data import Example, Sourced, Task, load_task
from prefixray.data.catalog import TaskName
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError

ROUGE = ("rouge_1", "rouge_2", "rouge_l")
COLUMNS: dict[TaskName, tuple[str, str]] = {
    "xsum": ("document", "summary"),
    "cnn_dm": ("article", "highlights"),
    "dialogsum": ("dialogue", "summary"),
    "scitldr": ("source", "target"),
}
PAIRS = {
    "train": [("The town has a new bridge.", "Bridge opens."), ("Rain fell all week.", "It rained.")],
    "dev": [("A cat was found in a tree.", "Cat found.")],
    "test": [("The shop \u201cMill\u201d closed.", "Shop closes."), ("Two trains met.", "Trains meet.")],
}
AS_TASK = {
    "train": tuple(Example(*pair) for pair in PAIRS["train"]),
    "dev": tuple(Example(*pair) for pair in PAIRS["dev"]),
    "test": tuple(Sourced(source, (target,)) for source, target in PAIRS["test"]),
}
Rows = Sequence[dict[str, object]]


def write(folder: Path, **files: str | Rows) -> str:
    """Files by their names, `train_jsonl` for train.jsonl; rows as JSONL."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return str(folder)


def rows(split: str, source: str = "document", target: str = "summary") -> Rows:
    return [{"id": f"{i}", source: text, target: summary} for i, (text, summary) in enumerate(PAIRS[split])]


def folder_of(path: Path, source: str = "document", target: str = "summary") -> str:
    return write(path, **{f"{split}_jsonl": rows(split, source, target) for split in PAIRS})


def load(name: TaskName, path: str | None = None, **others: object) -> Task:
    return load_task(TaskConfig.model_validate({"name": name, "path": path, **others}))


def problems(name: TaskName, path: Path | str | None = None, **others: object) -> list[str]:
    """What is said; the folder's path is left out."""
    with pytest.raises(UserError) as caught:
        load(name, None if path is None else str(path), **others)
    return [problem.replace(f"{path}/", "").replace(f"{path}", "FOLDER") for problem in caught.value.problems]


def as_parts(task: Task) -> dict[str, object]:
    return {"train": task.train, "dev": task.dev, "test": task.test_sources}
