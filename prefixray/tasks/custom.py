"""A user's own data: JSONL or CSV files, plain or gzipped, whose columns the sweep file names.

Every row is checked before anything is trained, and all problems are reported at once, each with its file and line.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from prefixray.config import ColumnsConfig, TaskConfig, UserError
from prefixray.tasks.contract import DATA_TO_TEXT_METRICS, Entry, Splits, Task, make_task

NUM_PROBLEMS_SHOWN = 20

Row = Mapping[str, object]
Rows = tuple[list[tuple[int, Row]], list[tuple[int, str]]]  # (line, row)s; (line, problem)s of the rest


def load_custom(config: TaskConfig) -> Task:
    """Read the three files that `task.train`, `task.dev` and `task.test` name.

    Rows with the same source are one source with several references. Raises `UserError` with all problems of all
    files, the first 20 written out.
    """
    splits: dict[str, list[Entry]] = {}
    problems: list[str] = []
    for split, name in {"train": config.train, "dev": config.dev, "test": config.test}.items():
        if name is None:
            problems.append(f"task.{split}: custom needs a JSONL or CSV file here")
            continue
        try:
            splits[split] = _read_file(split, name, config.columns)
        except UserError as error:
            problems += error.problems
    if len(problems) > NUM_PROBLEMS_SHOWN:
        problems[NUM_PROBLEMS_SHOWN:] = [f"and {len(problems) - NUM_PROBLEMS_SHOWN} more"]
    if problems:
        raise UserError(*problems)
    return make_task(config, Splits(**splits), DATA_TO_TEXT_METRICS)


def _read_file(split: str, name: str, columns: ColumnsConfig) -> list[Entry]:
    rows, problems = _reader(split, name)(_read_text(split, name), columns)
    entries = []
    for line, row in rows:
        entry, wrong = _entry(row, columns)
        problems += [(line, problem) for problem in wrong]
        entries.append(entry)
    if problems:
        by_line = sorted(problems, key=lambda problem: problem[0])
        raise UserError(*(f"{name}:{line}: {problem}" for line, problem in by_line))
    if not entries:
        raise UserError(f"{name}: has no rows")
    return entries


def _reader(split: str, name: str) -> Callable[[str, ColumnsConfig], Rows]:
    suffixes = [suffix.lower() for suffix in Path(name).suffixes if suffix.lower() != ".gz"]
    match suffixes[-1:]:
        case [".jsonl"]:
            return _read_jsonl
        case [".csv"]:
            return _read_csv
        case _:
            raise UserError(f"task.{split}: {name}: must be a .jsonl, .csv, .jsonl.gz or .csv.gz file")


def _read_text(split: str, name: str) -> str:
    try:
        content = Path(name).read_bytes()
        if name.lower().endswith(".gz"):
            content = gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"task.{split}: {name}: is not a whole gzip file: {error}") from error
    except OSError as error:
        raise UserError(f"task.{split}: {name}: cannot be read: {error.strerror}") from error
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name}:{line}: is not UTF-8 (byte 0x{content[error.start]:02x}); save it as UTF-8") from error


def _read_jsonl(text: str, columns: ColumnsConfig) -> Rows:
    rows: list[tuple[int, Row]] = []
    problems: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append((number, f"is not JSON: {error.msg} at column {error.colno}"))
        except (ValueError, RecursionError) as error:
            problems.append((number, f"is not JSON that can be read: {error}"))
        else:
            missing = _missing(row, columns) if isinstance(row, dict) else [f"is {_kind(row)}; it must be an object"]
            problems += [(number, problem) for problem in missing]
            if not missing:
                rows.append((number, row))
    return rows, problems


def _read_csv(text: str, columns: ColumnsConfig) -> Rows:
    """Rows with the line that each starts on; a quoted field may span lines."""
    rows: list[tuple[int, Row]] = []
    problems: list[tuple[int, str]] = []
    header: list[str] = []
    start = 1
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for values in reader:
            if values and not header:
                header = [value.strip() for value in values]
                problems = [(start, problem) for problem in _header_problems(header, columns)]
                if problems:
                    break
            elif values and len(values) != len(header):
                problems.append((start, f"has {len(values)} values for {len(header)} columns"))
            elif values:
                rows.append((start, dict(zip(header, values, strict=True))))
            start = reader.line_num + 1
    except csv.Error as error:
        problems.append((start, f"is not CSV: {error}"))
    return rows, problems


def _header_problems(header: list[str], columns: ColumnsConfig) -> list[str]:
    twice = [column for column in (columns.source, columns.target) if header.count(column) > 1]
    return _missing(header, columns) + [f'{header.count(column)} columns are named "{column}"' for column in twice]


def _missing(present: Collection[str], columns: ColumnsConfig) -> list[str]:
    wanted = {"source": columns.source, "target": columns.target}
    names = ", ".join(present) or "none"
    return [
        f'no "{column}" column; columns are {names} (set task.columns.{key})'
        for key, column in wanted.items()
        if column not in present
    ]


def _entry(row: Row, columns: ColumnsConfig) -> tuple[Entry, list[str]]:
    """The row as an entry, and what is wrong with it."""
    source, target = row[columns.source], row[columns.target]
    targets: list[object] = target if isinstance(target, list) else [target]
    problems = [f'"{columns.source}" {_problem(source)}'] if _problem(source) else []
    problems += [f'"{columns.target}" {_problem(text)}' for text in targets if _problem(text)]
    if not targets:
        problems.append(f'"{columns.target}" is an empty list; it must have a reference')
    references = tuple(str(text).strip() for text in targets)
    return Entry(str(source).strip(), targets=references, references=references), problems


def _problem(text: object) -> str | None:
    if not isinstance(text, str):
        return f"is {_kind(text)}; it must be text"
    if not text.strip():
        return "is empty"
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return "has half a surrogate pair, which is no text"
    return None


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "an object"
