"""A sweep as a program gives it: a file, a configuration or a mapping, with rows of data that the program holds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from prefixray.config.files.found import check_options, find_sweep_file
from prefixray.config.files.written import as_yaml
from prefixray.config.load import apply_overrides, load_document
from prefixray.config.schema import SweepConfig, SweepName
from prefixray.data.catalog import CATALOG
from prefixray.data.hub import is_saved
from prefixray.data.own.rows import Rows, write_rows
from prefixray.data.row_files import find_splits, is_folder
from prefixray.errors import UserError
from prefixray.system.yaml_document import Document, read_document

Given = SweepConfig | Mapping[str, Any] | Path | str
"""A configuration, the content of a sweep file as a mapping, a sweep file, or a sweep's name."""


def given_sweep(sweep: Given, rows: Mapping[str, Rows], overrides: Sequence[str] = ()) -> SweepConfig:
    """The configuration, with these rows as its task's train, dev and test; None stays what the sweep names.

    Rows are written to `runs/NAME/data`; a path is taken as a file's. A `task.path` of the hub, or of a set that
    `datasets` has saved, has no files that could stay: then all three must be given. Raises `UserError` with every
    problem.
    """
    document = _document(sweep, overrides)
    given = {split: some for split, some in rows.items() if some is not None}
    if not given:
        return load_document(document, overrides)
    apply_overrides(document, overrides)
    task = document.values.get("task")
    name = task.get("name") if isinstance(task, dict) else None
    if isinstance(name, str) and name in CATALOG and "train" not in CATALOG[name].keys:
        takes = ", ".join(task for task, facts in CATALOG.items() if "train" in facts.keys)
        raise UserError(f"{', '.join(given)}: task {name} brings its own data; of rows are the tasks {takes}")
    folder = Path("runs") / _name(document) / "data"
    path = task.get("path") if isinstance(task, dict) else None
    files: dict[str, Path | str] = {}
    if isinstance(path, str) and is_folder(path) and not is_saved(path):
        files |= find_splits(path, optional=tuple(rows))
    for split, some in given.items():
        files[split] = some if isinstance(some, str | Path) else write_rows(split, some, folder)
    changes = [] if path is None else ["task.path=null"]
    changes += [f"task.{split}={json.dumps(str(file), ensure_ascii=False)}" for split, file in files.items()]
    return load_document(document, changes)


def _document(sweep: Given, overrides: Sequence[str]) -> Document:
    if isinstance(sweep, SweepConfig):
        return Document(sweep.name, as_yaml(sweep))
    if isinstance(sweep, Mapping):
        try:
            return Document("the sweep", json.dumps(sweep, ensure_ascii=False, default=str))
        except (TypeError, ValueError) as error:
            raise UserError(f"the sweep: cannot be written as a sweep file: {error}") from None
    file = find_sweep_file(sweep)
    document = read_document(file)
    check_options(file, str(document.values.get("name")), overrides)
    return document


def _name(document: Document) -> str:
    """The sweep's name. Raises `UserError` with all problems of the document where it has none."""
    try:
        return str(TypeAdapter(SweepName).validate_python(document.values.get("name"), strict=True))
    except ValidationError:
        load_document(document)
        raise AssertionError("a sweep without a good name has problems") from None
