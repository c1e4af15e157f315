"""Documents: long texts, each of which is to become a prefix. They come from a file, or from the files of a folder.

A text or Markdown file is one document, named after the file. A JSONL file holds a document a line, as
`{"name": "manual", "text": "..."}`.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prefixray.data.row_files import for_each_split, kind_of, read_lines, read_rows
from prefixray.data.texts import text_problem
from prefixray.errors import UserError
from prefixray.system.path_or_hub import expanded

logger = logging.getLogger(__name__)

_KEY = "task.path"
_TEXT_SUFFIXES = (".md", ".markdown", ".txt")
_ROW_SUFFIXES = (".jsonl", ".jsonl.gz")
_NAME = re.compile(r"[^\W_][\w .+-]{0,99}")  # a folder and a served model are called so


@dataclass(frozen=True)
class Document:
    """A text, and what it is called in folders, tables and requests."""

    name: str
    text: str


def read_documents(path: str) -> tuple[Document, ...]:
    """The documents of a file, or of the text, Markdown and JSONL files of a folder, in the order of their file names.

    Other files of a folder are left out, with a line in the log; a file that is named itself is read as text whatever
    its suffix is. Raises `UserError` with all problems: a file that is missing, empty or no UTF-8 text, a line of JSONL
    without a name or a text, two documents of one name.
    """
    place = expanded(path)
    if not place.exists():
        raise UserError(f"{_KEY}: {path}: no such file or folder; paths are relative to the working directory")
    files = _files_of(place) if place.is_dir() else [place]
    read = for_each_split(lambda file: _read(Path(file)), map(str, files))
    documents = tuple(document for of_file in read.values() for document in of_file)
    _check_names(path, documents)
    return documents


def _files_of(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    wanted = [file for file in files if file.name.lower().endswith((*_TEXT_SUFFIXES, *_ROW_SUFFIXES))]
    if not wanted:
        suffixes = ", ".join((*_TEXT_SUFFIXES, _ROW_SUFFIXES[0]))
        raise UserError(f"{_KEY}: {folder}: has no document; it must have files that end in {suffixes}")
    if len(wanted) < len(files):
        others = ", ".join(file.name for file in files if file not in wanted)
        logger.warning("%s: %s: no text, Markdown or JSONL by their names, left out: %s", _KEY, folder, others)
    return wanted


def _read(file: Path) -> list[Document]:
    if file.name.lower().endswith(_ROW_SUFFIXES):
        return _read_jsonl(file)
    text = "".join(read_lines(_KEY, file)).replace("\r\n", "\n")
    if not text.strip():
        raise UserError(f"{_KEY}: {file}: is empty; a document must have text")
    if problem := _name_problem(file.stem):
        raise UserError(f"{_KEY}: {file}: {problem}")
    return [Document(file.stem, text)]


def _read_jsonl(file: Path) -> list[Document]:
    documents, problems = [], []
    for number, row in read_rows(_KEY, file, lambda columns: []):
        found = [row] if isinstance(row, str) else list(_row_problems(row))
        problems += [f"{file}:{number}: {problem}" for problem in found]
        if not found and isinstance(row, Mapping):
            documents.append(Document(str(row["name"]), str(row["text"])))
    if problems:
        raise UserError(*problems)
    if not documents:
        raise UserError(f"{_KEY}: {file}: is empty; it must have a document on each line")
    return documents


def _row_problems(row: Mapping[str, object]) -> Iterable[str]:
    missing = [key for key in ("name", "text") if key not in row]
    if missing:
        keys = " and no ".join(f'"{key}"' for key in missing)
        yield f'has no {keys}; a line is {{"name": "manual", "text": "..."}}'
        return
    if problem := text_problem(row["text"]):
        yield f'"text" {problem}'
    name = row["name"]
    problem = _name_problem(name) if isinstance(name, str) else f"is {kind_of(name)}; it must be text"
    if problem:
        yield f'"name" {problem}'


def _name_problem(name: str) -> str | None:
    """Why a document cannot be called so."""
    if _NAME.fullmatch(name):
        return None
    rule = "letters, digits, blanks and . _ + - alone, a letter or a digit first, 100 of them at most"
    return f"{name!r:.60}: is no name for a document, which has {rule}; give it another one"


def _check_names(path: str, documents: Iterable[Document]) -> None:
    """A name leads to one document; file systems may not tell upper case from lower case."""
    counts = Counter(document.name.lower() for document in documents)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        problem = "documents are called {} (upper and lower case are one); give each a name of its own"
        raise UserError(*(f"{_KEY}: {path}: {counts[name]} {problem.format(repr(name))}" for name in twice))
