"""Rows that a program holds, as a file that a sweep can name: lists, DataFrames and data sets of `datasets`.

The file's name has a hash of its content, so that a sweep that goes on with other rows is found out.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from prefixray.data.hub import with_label_names
from prefixray.data.row_files import kind_of
from prefixray.errors import UserError
from prefixray.system.atomic_files import write_whole

Rows: TypeAlias = Any
"""Mappings of columns to values, pairs of source and target, a DataFrame, or a split of `datasets`."""

_MISSING = ("NAType", "NaTType")  # the types of `pandas.NA` and `pandas.NaT`


def write_rows(split: str, rows: Rows, folder: Path) -> Path:
    """Write rows to `SPLIT-HASH.jsonl` in a folder; the file.

    Raises `UserError` for what are no rows; whoever reads the file checks columns and values.
    """
    lines = [_line(split, number, row) for number, row in enumerate(_each(split, rows), start=1)]
    if not lines:
        raise UserError(f"{split}: has no rows")
    text = "".join(lines)
    file = folder / f"{split}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:12]}.jsonl"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, text)
    return file


def _each(split: str, rows: Rows) -> Iterator[object]:
    """The rows one by one."""
    if hasattr(rows, "to_dicts"):  # polars, which has a `to_dict` of columns, too
        yield from rows.to_dicts()
    elif hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # pandas
        yield from rows.to_dict("records")
    elif isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        splits = f" with {', '.join(map(str, rows))}" if isinstance(rows, Mapping) else ""
        one = ": name one split of it" if splits else ""
        raise UserError(f"{split}: is {type(rows).__name__}{splits}; it must be rows, a DataFrame or a data set{one}")
    else:
        yield from with_label_names(rows)


def _line(split: str, number: int, row: object) -> str:
    if isinstance(row, tuple | list) and len(row) == 2:
        row = {"source": row[0], "target": row[1]}
    if not isinstance(row, Mapping):
        problem = f"is {kind_of(row)}; it must be a mapping of columns to values, or a pair of source and target"
        raise UserError(f"{split}[{number - 1}]: {problem}")
    values = {str(name): _plain(value) for name, value in row.items()}
    try:
        return json.dumps(values, ensure_ascii=True) + "\n"
    except (TypeError, ValueError) as error:
        raise UserError(f"{split}[{number - 1}]: cannot be written as JSON: {error}") from None


def _plain(value: object) -> object:
    """A value as JSON has it: numpy's numbers and arrays as Python's, a missing value of pandas as null."""
    if type(value).__name__ in _MISSING:
        return None
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
