"""Who says what where: libraries keep quiet unless there is a problem, prefixray writes a log file per sweep."""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from prefixray.errors import redacted

FOLLOW_SECONDS = 0.5  # between two looks at a file that grows
_CHATTY = ("transformers", "ray", "ray.tune", "optuna", "alembic", "mlflow", "datasets", "urllib3", "filelock")


def quieten() -> None:
    """Silence progress bars, advice and start-up messages of libraries; call it before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


class _Terminal(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at the time, so that a live table may stand in between."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        pass


class _Redacting(logging.Formatter):
    """Hides credentials, in tracebacks too."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def to_file(path: Path, *, terminal: int | None = logging.WARNING) -> None:
    """Send what prefixray logs to a file; what is of the level `terminal` or worse goes to stderr as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(_Redacting("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("prefixray")
    root.setLevel(logging.INFO)
    root.propagate = False
    logging.raiseExceptions = False  # where the disk is full, that is said once and not with every line of the log
    root.handlers = [file]
    if terminal is not None:
        shown = _Terminal()
        shown.setLevel(terminal)
        shown.setFormatter(_Redacting("%(message)s"))
        root.addHandler(shown)


@contextmanager
def followed(path: Path) -> Iterator[None]:
    """Show on stderr what anyone, a worker on another machine too, writes to this file meanwhile."""
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
