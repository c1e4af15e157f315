"""Data sets of the Hugging Face hub, as rows. `datasets` is imported here alone, when a data set is loaded."""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefixray.data.row_files import SPLITS, Row, files_of_split
from prefixray.errors import UserError, first_line
from prefixray.system.path_or_hub import expanded

logger = logging.getLogger(__name__)

SPLIT_HINT = " (custom, summarization: task.split takes dev and test out of train)"
"""The end of a message about a split that a data set lacks."""


@dataclass(frozen=True)
class HubRows:
    """A split: its columns, and its rows, which are read from disk one by one."""

    columns: tuple[str, ...]
    rows: Iterable[Row]


@dataclass(frozen=True)
class _Named:
    """Rows in which a label is its name."""

    rows: Iterable[Row]
    labels: Mapping[str, Any]  # a column's `ClassLabel`

    def __iter__(self) -> Iterator[Row]:
        for row in self.rows:
            yield {**row, **{column: _name_of(row[column], label) for column, label in self.labels.items()}}


def with_label_names(rows: Iterable[Any]) -> Iterable[Any]:
    """A split of `datasets` with the names of its classes in place of their numbers; other rows as they are."""
    features = getattr(rows, "features", None)
    kinds = (
        {} if not isinstance(features, Mapping) else {name: getattr(f, "feature", f) for name, f in features.items()}
    )
    labels = {name: kind for name, kind in kinds.items() if hasattr(kind, "int2str")}
    return _Named(rows, labels) if labels else rows


def _name_of(value: object, label: Any) -> object:  # noqa: ANN401  # a `ClassLabel`
    """A class's name; None for the -1 of rows without a class."""
    if isinstance(value, list):
        return [_name_of(inner, label) for inner in value]
    return label.names[value] if isinstance(value, int) and 0 <= value < len(label.names) else None


def load_hub(name: str, config: str | None, *, remedy: str, optional: Collection[str] = ()) -> dict[str, HubRows]:
    """The splits of a hub data set, owner/name or owner/name:config, by our names; `optional` ones may be missing.

    Raises `UserError`: with the `remedy` where the set cannot be loaded, and where a split is missing.
    """
    import datasets  # type: ignore[import-untyped, unused-ignore]  # takes a second, and most tasks do not need it

    from prefixray.system.hub import NoAnswer, hub_problem  # takes a moment, too

    repository, _, named = name.partition(":")
    config = named or config
    try:
        try:
            hub = datasets.load_dataset(repository, config)
        except (RuntimeError, ConnectionError) as error:
            hub = datasets.load_dataset("parquet", data_files=_exported(repository, config or "default", error))
    except (NoAnswer, OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        is_of_configs = str(error).startswith("Config name is missing")
        problem = f"{' '.join(str(error).split())} as {repository}:NAME" if is_of_configs else hub_problem(error)
        raise UserError(
            f"task.path: {name}: no such folder, nor can a hub data set be loaded: {problem}; {remedy}"
        ) from error
    return _by_our_names(name, hub, optional)


def _exported(repository: str, config: str, error: Exception) -> dict[str, list[str]]:
    """The files by split of the hub's own export, of a data set with a loading script, which `datasets` runs no more.

    If the hub does not answer, the cache may have it. Raises `error` where it is about something else.
    """
    from prefixray.system.hub import NoAnswer, exported_data

    is_script = "scripts are no longer supported" in str(error)
    if not is_script and isinstance(error, RuntimeError):
        raise error
    try:
        names = [name for names in SPLITS.values() for name in names]
        folder = exported_data(repository, config, names, is_local=not is_script)
    except (NoAnswer, OSError, ValueError):
        if is_script:
            raise
        raise error from None
    files: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*/*.parquet")):
        split = file.parent.name.removeprefix("partial-")
        if split != file.parent.name and split not in files:
            logger.warning("task.path: %s: the hub's export has only a part of %s", repository, split)
        files.setdefault(split, []).append(str(file))
    if not files:
        raise ValueError(f"the hub's export has no {config}") from error
    return files


def is_saved(path: str) -> bool:
    """Whether the folder is a data set in a form of `datasets`: saved to disk, or a copy of a hub data set's files.

    A folder with a file of training rows of its own is none, whatever lies in folders below it.
    """
    folder = expanded(path)
    if files_of_split(path, "train"):
        return _is_on_disk(folder)
    has_shards = any(folder.glob("*-of-*.parquet")) or any((folder / "data").glob("*.parquet"))
    return _is_on_disk(folder) or has_shards


def load_saved(path: str, optional: Collection[str] = ()) -> dict[str, HubRows]:
    """The splits of such a folder, by our names; a data set without splits is train.

    Raises `UserError` where it cannot be read or a split is missing.
    """
    import datasets  # type: ignore[import-untyped, unused-ignore]

    folder = expanded(path)
    try:
        hub = datasets.load_from_disk(str(folder)) if _is_on_disk(folder) else datasets.load_dataset(str(folder))
    except (OSError, RuntimeError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"task.path: {path}: is a folder of `datasets` that cannot be read: {first_line(error)}"
        ) from error
    except IndexError as error:  # it joins a split's files, and `save_to_disk` has written none
        raise UserError(
            f"task.path: {path}: a split has no rows, which `datasets` cannot load; leave it out"
        ) from error
    return _by_our_names(path, {"train": hub} if isinstance(hub, datasets.Dataset) else hub, optional)


def _is_on_disk(folder: Path) -> bool:
    """Whether `save_to_disk` has written the folder, as several splits or as one."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _by_our_names(name: str, hub: Any, optional: Collection[str]) -> dict[str, HubRows]:  # noqa: ANN401  # of `datasets`
    named = {split: [name for name in names if name in hub] for split, names in SPLITS.items()}
    missing = [split for split, names in named.items() if not names and split not in optional]
    if missing:
        lacking = f"has no split {', '.join(missing)}; its splits are {', '.join(hub)}"
        hint = "" if "train" in missing else SPLIT_HINT
        raise UserError(f"task.path: {name}: {lacking}{hint}")
    rows = {split: hub[names[0]] for split, names in named.items() if names}
    return {split: HubRows(tuple(each.column_names), with_label_names(each)) for split, each in rows.items()}
