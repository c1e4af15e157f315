"""Quiet: what the libraries under us say goes nowhere unless it is a problem."""

import logging
import os
import warnings
from pathlib import Path

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


def to_file(path: Path) -> None:
    """Send what prefixray logs to a file; warnings go to the terminal as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.WARNING)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger("prefixray")
    root.setLevel(logging.INFO)
    root.propagate = False
    root.handlers = [file, terminal]
