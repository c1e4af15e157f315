"""What a user's data looks like: where its splits are, and which columns hold source and target."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from prefixray.data.hub import is_saved, load_hub, load_saved
from prefixray.data.own.chat import source_and_target
from prefixray.data.row_files import SPLITS, Row, files_of_split, find_splits, is_folder, read_rows
from prefixray.data.texts import is_empty
from prefixray.errors import UserError
from prefixray.system.path_or_hub import expanded, local_path

_OPTIONAL = ("dev", "test")
_NUM_ROWS = 20  # that are looked at
_LONGEST_NAME = 60
_SOURCES = (
    *("source", "question", "prompt", "instruction", "input", "document", "article", "dialogue", "context"),
    *("sentence", "text", "src", "mr", "meaning_representation", "query"),
)
_TARGETS = (
    *("target", "answer", "answers", "output", "response", "completion", "summary", "highlights", "references"),
    *("reference", "label", "labels", "class", "tgt", "ref", "human_reference", "translation"),
)
"""Names that such columns often have; the first that a data set has is taken."""


@dataclass(frozen=True)
class Look:
    """What was found, as keys of the section `task`."""

    name: str  # for the sweep
    places: Mapping[str, str]  # path, or train, dev and test
    missing: tuple[str, ...]  # of dev and test, those that have to be taken out of train
    columns: Mapping[str, str]  # source and target, or messages
    others: tuple[str, ...]  # the columns that are not used
    unused: tuple[str, ...]  # files beside that of train without a target, as test files of competitions


def look_at(data: str, source: str | None = None, target: str | None = None) -> Look:
    """Look at a file, a folder or a hub data set; `source` and `target` name columns in place of what is found.

    Raises `UserError` where there is nothing that can be read, and where the columns cannot be told.
    """
    places, files, splits = _open(data)
    rows = splits["train"]
    found = dict.fromkeys(name for row in rows for name in row)
    columns = _columns(data, rows, list(found), {"source": source, "target": target})
    others = tuple(name for name in found if name not in columns.values())
    without = {split for split, first in splits.items() if first and _lack(first, columns.get("target"))}
    missing = tuple(split for split in _OPTIONAL if split not in splits or split in without)
    unused = tuple(files[split].name for split in missing if split in files)
    if unused:
        places = {split: str(file) for split, file in files.items() if split not in missing}
    return Look(_name(data), places, missing, columns, others, unused)


def _lack(rows: Sequence[Row], target: str | None) -> bool:
    """Whether no row has a target, as in published test splits without labels."""
    return target is not None and all(is_empty(row.get(target)) for row in rows)


def _open(data: str) -> tuple[dict[str, str], dict[str, Path], dict[str, list[Row]]]:
    """Where the splits are, by the keys of `task`; their files, if they are in files; and the first rows of each."""
    path = local_path(data)
    if path is not None and path.is_file():
        files = {"train": path}
        if path.name.partition(".")[0] in SPLITS["train"] and len(files_of_split(str(path.parent), "train")) == 1:
            beside = find_splits(str(path.parent), tuple(SPLITS))
            files = beside if beside.get("train") == path else files
        return {split: str(file) for split, file in files.items()}, files, _with_first_rows(files)
    if path is None and not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", data):
        raise UserError(f"{data}: no such file or folder; a data set of the hub is owner/name")
    if is_folder(data) and not is_saved(data):
        files = find_splits(data, _OPTIONAL)
        return {"path": data}, files, _with_first_rows(files)
    if is_folder(data):
        hub = load_saved(data, _OPTIONAL)
    else:
        hub = load_hub(data, None, remedy="name a JSONL, CSV or Parquet file, or a folder", optional=_OPTIONAL)
    return {"path": data}, {}, {split: list(islice(each.rows, _NUM_ROWS)) for split, each in hub.items()}


def _with_first_rows(files: Mapping[str, Path]) -> dict[str, list[Row]]:
    return {split: _first_rows(file) if split == "train" else _readable_rows(file) for split, file in files.items()}


def _first_rows(file: Path) -> list[Row]:
    rows: list[Row] = []
    is_csv = ".csv" in file.suffixes
    for number, row in islice(read_rows("data", file, _check_two if is_csv else lambda columns: []), _NUM_ROWS):
        if isinstance(row, str):
            raise UserError(f"{file}:{number}: {row}")
        rows.append(row)
    if not rows:
        raise UserError(f"{file}: has no rows")
    return rows


def _readable_rows(file: Path) -> list[Row]:
    """The first rows of a further file, without those that cannot be read: whoever reads them all says why."""
    rows = islice(read_rows("data", file, lambda columns: []), _NUM_ROWS)
    return [row for _, row in rows if not isinstance(row, str)]


def _check_two(columns: Sequence[str]) -> list[str]:
    problem = "has one column, {}; it must have one for the source and one for the target"
    return [problem.format(columns[0])] if len(columns) == 1 else []


def _columns(data: str, rows: Sequence[Row], names: Sequence[str], given: Mapping[str, str | None]) -> dict[str, str]:
    """The columns by the keys of `task.columns`."""
    for key, name in given.items():
        if name is not None and name not in names:
            raise UserError(f"--{key} {name}: {data} has no such column; columns are {', '.join(names)}")
    if given["source"] is not None and given["source"] == given["target"]:
        raise UserError(f"--target {given['target']}: is the source's column, too; name another one")
    chats = [name for name in names if all(isinstance(source_and_target(row.get(name)), tuple) for row in rows)]
    if chats and not any(given.values()):
        return {"messages": chats[0]}
    texts, lists = _of_texts(rows, names, all)
    with_gaps, lists_with_gaps = _of_texts(rows, names, any)  # whoever reads the rows says where, or leaves them out
    numbers = [name for name in names if all(isinstance(row.get(name), bool | int | float) for row in rows)]  # labels
    sources, targets = _in(_SOURCES, texts, with_gaps), _in(_TARGETS, lists, lists_with_gaps, numbers)
    source = given["source"] or next((name for name in sources if name != given["target"]), None)
    target = given["target"] or next((name for name in targets if name != source), None)
    if len(lists) < 2:
        texts, lists = with_gaps, lists_with_gaps
    if (source is None or target is None) and len(lists) == 2:
        source = source or next((name for name in texts if name != target), None)
        target = target or next((name for name in lists if name != source), None)
    talks = [name for name in names if any(_is_chat(row.get(name)) for row in rows)]
    if talks and not any(given.values()) and (source is None or target is None):
        return {"messages": talks[0]}  # whoever reads the rows says what is wrong with them
    source = source or next((name for name in _in(_SOURCES, names) if name != target), None)  # as above
    target = target or next((name for name in _in(_TARGETS, names) if name != source), None)
    if source is None or target is None:
        missing = " and ".join(f"--{key}" for key, name in (("source", source), ("target", target)) if name is None)
        problem = f"cannot tell which column is which; those of text are {', '.join(lists) or 'none'}"
        raise UserError(f"{data}: {problem} (of {', '.join(names)}); say {missing} COLUMN")
    return {"source": source, "target": target}


def _of_texts(
    rows: Sequence[Row], names: Sequence[str], enough: Callable[[Iterable[bool]], bool]
) -> tuple[list[str], list[str]]:
    """The columns of texts, and those of texts or lists of texts, in `all` rows or in `any`, the others being empty."""

    def holds(name: str, *checks: Callable[[object], bool]) -> bool:
        values = [row.get(name) for row in rows]
        good = [any(check(value) for check in checks) for value in values]
        return enough(good) and all(is_good or is_empty(value) for is_good, value in zip(good, values, strict=True))

    return [name for name in names if holds(name, _is_text)], [n for n in names if holds(n, _is_text, _is_texts)]


def _in(usual: Sequence[str], *several: Sequence[str]) -> list[str]:
    """The columns with usual names, in small or capital letters, those of the first columns first."""
    return [name for columns in several for word in usual for name in columns if name.lower() == word]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_chat(value: object) -> bool:
    """Whether it is meant as a chat, in whatever form."""
    return isinstance(value, list) and any(isinstance(part, dict) and {"role", "from"} & part.keys() for part in value)


def _name(data: str) -> str:
    """A name for the sweep: of the file, or of its folder where the file is called train."""
    path = expanded(data).resolve() if local_path(data) is not None else Path(data.partition(":")[0])
    stem = path.name.partition(".")[0] if path.suffix else path.name
    name = path.parent.name if stem in SPLITS["train"] else stem
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-")[:_LONGEST_NAME] or "own_data"
