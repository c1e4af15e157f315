"""Local files as rows, each with the number of its first line: JSONL, CSV, Parquet, and pairs of line files.

JSONL and CSV may be gzipped. A row of Parquet has its own number, from 1. A pair of line files is the original's form
of summarisation data: `train.source` and `train.target`, one example a line. Only the current row is held in memory.
"""

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from prefixray.errors import UserError
from prefixray.system.csv_reader import csv_reader
from prefixray.system.path_or_hub import expanded, local_path

if TYPE_CHECKING:
    import pyarrow  # type: ignore[import-untyped, unused-ignore]

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "dev": ("dev", "validation", "val", "valid"),
    "test": ("test",),
}
"""The names that a split may have, in a folder and on the hub."""

_NUM_PROBLEMS_SHOWN = 20
_ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
_LINE_SUFFIX = ".source"
_SEPARATORS = (";", "\t", "|")  # of files that are named .csv all the same

T = TypeVar("T")
Row = Mapping[str, object]
NumberedRows = Iterator[tuple[int, Row | str]]  # a line's number, and the row that starts there or a problem with it
CheckColumns = Callable[[Sequence[str]], list[str]]  # columns -> problems with them


def is_folder(path: str) -> bool:
    """Whether `task.path` is a folder here, or else a hub data set. Raises `UserError` where it can be neither."""
    local = local_path(path)
    if local is not None and local.is_dir():
        return True
    if local is not None:
        raise UserError(
            f"task.path: {path}: is a file; it must be a folder, or a hub data set (task.train names a file)"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", path):
        raise UserError(f"task.path: {path}: no such folder")
    return False


def for_each_split(read: Callable[[str], T], splits: Iterable[str] = tuple(SPLITS)) -> dict[str, T]:
    """The results of `read` by split, of these splits. Raises `UserError` with the first 20 problems of all splits."""
    results: dict[str, T] = {}
    problems: list[str] = []
    for split in splits:
        try:
            results[split] = read(split)
        except UserError as error:
            problems += error.problems
    if len(problems) > _NUM_PROBLEMS_SHOWN:
        problems[_NUM_PROBLEMS_SHOWN:] = [f"and {len(problems) - _NUM_PROBLEMS_SHOWN} more"]
    if problems:
        raise UserError(*problems)
    return results


def find_splits(path: str, optional: Collection[str] = ()) -> dict[str, Path]:
    """The file of each split in a folder. Raises `UserError` for each split that has none, or several.

    The `optional` splits may have none.
    """

    def find(split: str) -> Path:
        files = files_of_split(path, split)
        if not files:
            forms = f"{split}.jsonl, {split}.csv (or either with .gz), {split}.parquet nor {split}.source"
            raise UserError(f"task.path: {path}: has neither {forms}")
        if len(files) > 1:
            several = ", ".join(file.name for file in files)
            raise UserError(f"task.path: {path}: has several files for {split}: {several}; keep one")
        return files[0]

    return for_each_split(find, [split for split in SPLITS if split not in optional or files_of_split(path, split)])


def files_of_split(path: str, split: str) -> list[Path]:
    """The files in a folder that can be this split."""
    names = [f"{name}{suffix}" for name in SPLITS[split] for suffix in (*_ROW_SUFFIXES, _LINE_SUFFIX)]
    return [file for name in names if (file := expanded(path) / name).is_file()]


def is_line_file(file: Path) -> bool:
    """Whether it is the first of a pair of line files: one text a line, and nothing else."""
    return file.suffix == _LINE_SUFFIX


def read_rows(key: str, file: Path, check: CheckColumns) -> NumberedRows:
    """The rows of a file, whose name tells its form; `key` names the file in the sweep file.

    `check` is asked about the columns of each row. Of a CSV file it is asked about the header, and where the header has
    problems, no row is read. Raises `UserError` for a file that cannot be read at all.
    """
    if is_line_file(file):
        target = file.with_suffix(".target")
        return _read_pairs(read_lines(key, file), read_lines(key, target), target, check)
    suffixes = [suffix.lower() for suffix in file.suffixes if suffix.lower() != ".gz"]
    match suffixes[-1:]:
        case [".jsonl"]:
            return _read_jsonl(read_lines(key, file), check)
        case [".csv"]:
            return _read_csv(read_lines(key, file), check)
        case [".parquet"]:
            return _read_parquet(key, file, check)
        case _:
            raise UserError(f"{key}: {file}: must be a .jsonl, .csv, .jsonl.gz, .csv.gz or .parquet file")


def kind_of(value: object) -> str:
    """The name of a value's kind in a message."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case float() if math.isnan(value):
            return "NaN"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case Mapping():
            return "an object"
        case Exception():  # in place of a value
            return f"nothing that can be read ({value})"
        case _:
            return f"of type {type(value).__name__}"


def read_lines(key: str, file: Path) -> Iterator[str]:
    """The lines with their line ends, without a byte order mark; `key` names the file in the sweep file."""
    try:
        with _open(file) as stream:
            for number, line in enumerate(stream, start=1):
                yield _decode(line, file, number)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{key}: {file}: is not a whole gzip file: {error}") from error
    except OSError as error:
        raise UserError(f"{key}: {file}: cannot be read: {error.strerror}") from error


def _open(file: Path) -> gzip.GzipFile | IO[bytes]:
    return gzip.open(file, "rb") if file.suffix.lower() == ".gz" else file.open("rb")


def _decode(line: bytes, file: Path, number: int) -> str:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise UserError(f"{file}:{number}: is not UTF-8 (byte 0x{byte:02x}); save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{file}:{number}: holds a NUL byte; is it UTF-16? save it as UTF-8")
    return text.removeprefix("\ufeff") if number == 1 else text


def _read_jsonl(lines: Iterable[str], check: CheckColumns) -> NumberedRows:
    is_first = True
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if is_first and line.lstrip()[0] == "[":
            yield number, "looks like a JSON array; a JSONL file has an object on each line (jq -c '.[]' makes one)"
            return
        if is_first and line.strip() == "{":
            yield number, "looks like one JSON object over several lines; a JSONL file has an object on each line"
            return
        is_first = False
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            yield number, f"is not JSON: {error.msg} at column {error.colno}"
        except (ValueError, RecursionError) as error:
            yield number, f"is not JSON that can be read: {error}"
        else:
            problems = check(list(row)) if isinstance(row, dict) else [f"is {kind_of(row)}; it must be an object"]
            yield from ((number, problem) for problem in problems)
            if not problems:
                yield number, row


def _read_csv(lines: Iterable[str], check: CheckColumns) -> NumberedRows:
    """Rows, each with the number of its first line: a quoted field may span lines."""
    header: list[str] = []
    start = 1
    reader = csv_reader(chain.from_iterable(io.StringIO(line, newline="") for line in lines), strict=True)
    try:
        for values in reader:
            if values and not header:
                header = [value.strip() for value in values]
                problems = check(header)
                separators = [sign for sign in _SEPARATORS if sign in header[0]] if len(header) == 1 else []
                if problems and separators:
                    problems = [f"fields are separated by {separators[0]!r}; they must be by ','"]
                yield from ((start, problem) for problem in problems)
                if problems:
                    return
            elif values and len(values) != len(header):
                yield start, f"has {len(values)} values for {len(header)} columns"
            elif values:
                yield start, dict(zip(header, values, strict=True))
            start = reader.line_num + 1
    except csv.Error as error:
        yield start, f"is not CSV: {error}"


def _read_parquet(key: str, file: Path, check: CheckColumns) -> NumberedRows:
    """Rows with their numbers, from 1. The columns are checked once. What Python cannot hold is an exception."""
    import pyarrow  # type: ignore[import-untyped, unused-ignore]  # `datasets` brings it along
    import pyarrow.parquet as parquet  # type: ignore[import-untyped, unused-ignore]

    try:
        with parquet.ParquetFile(file) as table:
            problems = check(table.schema_arrow.names)
            yield from ((1, problem) for problem in problems)
            if problems:
                return
            batches = (zip(*map(_values, batch.columns), strict=True) for batch in table.iter_batches(1000))
            names = table.schema_arrow.names
            rows = (dict(zip(names, values, strict=True)) for batch in batches for values in batch)
            yield from enumerate(rows, start=1)
    except pyarrow.ArrowException as error:
        raise UserError(f"{key}: {file}: is not Parquet that can be read: {error}") from error
    except OSError as error:
        raise UserError(f"{key}: {file}: cannot be read: {error.strerror or error}") from error


def _values(column: "pyarrow.Array") -> list[object]:
    """A column's values; in place of one that Python cannot hold, as a date in the year 10000, the reason."""
    import pyarrow

    def value(scalar: "pyarrow.Scalar") -> object:
        try:
            return scalar.as_py()
        except (pyarrow.ArrowException, ValueError, OverflowError) as error:
            return error

    try:
        return list(column.to_pylist())
    except (pyarrow.ArrowException, ValueError, OverflowError):
        return [value(scalar) for scalar in column]


def _read_pairs(sources: Iterable[str], targets: Iterable[str], target_file: Path, check: CheckColumns) -> NumberedRows:
    """One row for each pair of lines, with the columns source and target."""
    if problems := check(["source", "target"]):
        yield from ((1, problem) for problem in problems)
        return
    for number, (source, target) in enumerate(zip_longest(sources, targets), start=1):
        if source is None or target is None:
            yield number, f"{target_file.name} has {'more' if source is None else 'fewer'} lines than this file"
            return
        yield number, {"source": source, "target": target}
