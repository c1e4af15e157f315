"""Logs: a file for each sweep, warnings on the terminal, and silence from libraries unless there is a problem."""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from prefixray.errors import printable, redacted

FOLLOW_SECONDS = 0.5  # between two looks at a file that grows
_CHATTY = ("transformers", "ray", "ray.tune", "optuna", "alembic", "mlflow", "datasets", "urllib3", "filelock")


def quieten() -> None:
    """Silence the progress bars, advice and start-up messages of libraries. Call it before importing them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


class _Terminal(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`, which a live table may replace for a while."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        pass


class _Redacting(logging.Formatter):
    """Hides credentials in messages and tracebacks, and spells out control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(redacted(super().format(record)))


def to_file(path: Path, *, terminal: int | None = logging.WARNING) -> None:
    """Send prefixray's log to a file, and records of the level `terminal` or above to stderr as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(_Redacting("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("prefixray")
    root.setLevel(logging.INFO)
    root.propagate = False
    logging.raiseExceptions = False  # a full disk is reported once, not with every line of the log
    root.handlers = [file]
    if terminal is not None:
        handler = _Terminal()
        handler.setLevel(terminal)
        handler.setFormatter(_Redacting("%(message)s"))
        root.addHandler(handler)


@contextmanager
def followed(path: Path) -> Iterator[None]:
    """Copy to stderr what any process, even on another machine, appends to this file during the block."""
    ended = threading.Event()
    with path.open(encoding="utf-8", errors="replace") as file:
        file.seek(0, os.SEEK_END)

        def follow() -> None:
            is_last = False
            while not is_last:
                is_last = ended.wait(FOLLOW_SECONDS)
                for line in file:
                    print(line, end="", file=sys.stderr)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()
