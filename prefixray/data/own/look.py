"""What a user's data looks like: where its splits are, and which columns hold source and target."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from prefixray.data.hub import is_saved, load_hub, load_saved
from prefixray.data.own.chat import source_and_target
from prefixray.data.row_files import SPLITS, Row, find_splits, is_folder, read_rows
from prefixray.errors import UserError
from prefixray.system.path_or_hub import expanded, local_path

_OPTIONAL = ("dev", "test")
_NUM_ROWS = 20  # that are looked at
_SOURCES = (
    *("source", "question", "prompt", "instruction", "input", "document", "article", "dialogue", "context"),
    *("sentence", "text", "src", "mr", "meaning_representation", "query"),
)
_TARGETS = (
    *("target", "answer", "answers", "output", "response", "completion", "summary", "highlights", "references"),
    *("reference", "label", "tgt", "ref", "human_reference", "translation"),
)
"""Names that such columns often have; the first that a data set has is taken."""


@dataclass(frozen=True)
class Look:
    """What was found, as keys of the section `task`."""

    name: str  # for the sweep
    places: Mapping[str, str]  # path, or train, dev and test
    needs_split: bool
    columns: Mapping[str, str]  # source and target, or messages
    others: tuple[str, ...]  # the columns that are not used


def look_at(data: str, source: str | None = None, target: str | None = None) -> Look:
    """Look at a file, a folder or a hub data set; `source` and `target` name columns in place of what is found.

    Raises `UserError` where there is nothing that can be read, and where the columns cannot be told.
    """
    places, splits, rows = _open(data)
    found = dict.fromkeys(name for row in rows for name in row)
    columns = _columns(data, rows, list(found), {"source": source, "target": target})
    others = tuple(name for name in found if name not in columns.values())
    return Look(_name(data), places, not set(_OPTIONAL) <= set(splits), columns, others)


def _open(data: str) -> tuple[dict[str, str], Sequence[str], list[Row]]:
    """Where the splits are, which ones there are, and the first rows of train."""
    path = local_path(data)
    if path is not None and path.is_file():
        files = {"train": path}
        if path.name.partition(".")[0] in SPLITS["train"]:
            files = find_splits(str(path.parent), _OPTIONAL)  # its neighbours
        return {split: str(file) for split, file in files.items()}, list(files), _first_rows(files["train"])
    if path is None and not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", data):
        raise UserError(f"{data}: no such file or folder; a data set of the hub is owner/name")
    if is_folder(data) and not is_saved(data):
        files = find_splits(data, _OPTIONAL)
        return {"path": data}, list(files), _first_rows(files["train"])
    if is_folder(data):
        hub = load_saved(data, _OPTIONAL)
    else:
        hub = load_hub(data, None, remedy="name a JSONL, CSV or Parquet file, or a folder", optional=_OPTIONAL)
    return {"path": data}, list(hub), list(islice(hub["train"].rows, _NUM_ROWS))


def _first_rows(file: Path) -> list[Row]:
    rows: list[Row] = []
    for number, row in islice(read_rows("data", file, lambda columns: []), _NUM_ROWS):
        if isinstance(row, str):
            raise UserError(f"{file}:{number}: {row}")
        rows.append(row)
    if not rows:
        raise UserError(f"{file}: has no rows")
    return rows


def _columns(data: str, rows: Sequence[Row], names: Sequence[str], given: Mapping[str, str | None]) -> dict[str, str]:
    """The columns by the keys of `task.columns`."""
    for key, name in given.items():
        if name is not None and name not in names:
            raise UserError(f"--{key} {name}: {data} has no such column; columns are {', '.join(names)}")
    chats = [name for name in names if all(isinstance(source_and_target(row.get(name)), tuple) for row in rows)]
    if chats and not any(given.values()):
        return {"messages": chats[0]}
    texts = [name for name in names if all(_is_text(row.get(name)) for row in rows)]
    lists = [name for name in names if all(_is_text(row.get(name)) or _is_texts(row.get(name)) for row in rows)]
    source = given["source"] or next((name for name in _SOURCES if name in texts and name != given["target"]), None)
    target = given["target"] or next((name for name in _TARGETS if name in lists and name != source), None)
    if (source is None or target is None) and len(lists) == 2:
        source = source or next((name for name in texts if name != target), None)
        target = target or next((name for name in lists if name != source), None)
    if source is None or target is None:
        missing = " and ".join(f"--{key}" for key, name in (("source", source), ("target", target)) if name is None)
        problem = f"cannot tell which column is which; those of text are {', '.join(lists) or 'none'}"
        raise UserError(f"{data}: {problem} (of {', '.join(names)}); say {missing} COLUMN")
    return {"source": source, "target": target}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _name(data: str) -> str:
    """A name for the sweep: of the file, or of its folder where the file is called train."""
    path = expanded(data).resolve() if local_path(data) is not None else Path(data.partition(":")[0])
    stem = path.name.partition(".")[0] if path.suffix else path.name
    name = path.parent.name if stem in SPLITS["train"] else stem
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-") or "own_data"
