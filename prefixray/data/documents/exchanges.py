"""What self-study leaves of a document: questions and answers, one a line of `exchanges.jsonl`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from prefixray.data.row_files import read_rows
from prefixray.errors import UserError
from prefixray.system.atomic_files import write_whole

StudySplit = Literal["train", "dev", "test"]
EXCHANGES = "exchanges.jsonl"
TEACHERS = "teacher.safetensors"
"""The files' names in a document's folder; the second has what the base expects at each answer, in the same order."""


@dataclass(frozen=True)
class Exchange:
    """A question about a document and its answer, both by the base."""

    split: StudySplit
    kind: str  # of the seed prompt: question, summary, structure, use, fact, or own
    start: int  # the chunk that was in context: its first token in the document
    end: int  # the token behind it
    question: str
    answer: str  # one line


def write_exchanges(folder: Path, exchanges: Sequence[Exchange]) -> None:
    """Write `exchanges.jsonl` in a folder."""
    lines = [json.dumps(asdict(exchange), ensure_ascii=False) + "\n" for exchange in exchanges]
    write_whole(folder / EXCHANGES, "".join(lines))


def read_exchanges(folder: Path) -> list[Exchange]:
    """The exchanges in a folder. Raises `UserError` where there are none, or a line is none."""
    file, keys = folder / EXCHANGES, list(Exchange.__dataclass_fields__)
    if not file.is_file():
        raise UserError(f"task.exchanges: {folder}: has no {EXCHANGES}; prefixray sweep makes it before the search")
    exchanges = []
    for number, row in read_rows("task.exchanges", file, lambda columns: []):
        if isinstance(row, str) or sorted(row) != sorted(keys) or row["split"] not in ("train", "dev", "test"):
            problem = row if isinstance(row, str) else f"must have {', '.join(keys)}, and a split train, dev or test"
            raise UserError(f"{file}:{number}: {problem}; delete the folder, and the sweep makes it again")
        exchanges.append(Exchange(**row))  # type: ignore[arg-type]
    return exchanges
