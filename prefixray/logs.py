"""Quiet: what the libraries under us say goes nowhere unless it is a problem."""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TextIO

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


def to_file(path: Path, *, terminal: bool = True) -> None:
    """Send what prefixray logs to a file; warnings go to the terminal as well, where there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("prefixray")
    root.setLevel(logging.INFO)
    root.propagate = False
    root.handlers = [file]
    if terminal:
        shown = _Terminal()
        shown.setLevel(logging.WARNING)
        shown.setFormatter(logging.Formatter("%(message)s"))
        root.addHandler(shown)
