"""Small data files, and a task that is made of them."""

import json
from collections.abc import Sequence
from pathlib import Path

from prefixray.data import Task, load_task
from prefixray.data.task_config import TaskConfig
from prefixray.system.records import Count


def write(file: Path, text: str) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return str(file)


def jsonl(rows: Sequence[object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def pairs(*texts: tuple[str, str]) -> str:
    return jsonl([{"source": source, "target": target} for source, target in texts])


def custom(folder: Path, content: str, count: Count = "all") -> Task:
    """A task whose three splits are the same JSONL text, each cut to `count`."""
    file = write(folder / "data.jsonl", content)
    counts = {"num_train": count, "num_dev": count, "num_test": count}
    return load_task(TaskConfig.model_validate({"name": "custom", "train": file, "dev": file, "test": file, **counts}))
