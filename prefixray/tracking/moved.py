"""A sweep's folder that was moved or copied since: MLflow must write nothing into the place where it was before.

A database stores where each run's artifacts lie, as an absolute address; MLflow has no call that changes it.
"""

import logging
import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

_logger = logging.getLogger(__name__)

ARTIFACTS = "mlartifacts"  # the folder of artifacts in a sweep's folder
ID_FILE = "mlflow.id"
_ADDRESSES = (("experiments", "artifact_location"), ("runs", "artifact_uri"))


def relocate(database: Path, sweep: str) -> None:
    """Have all runs of a sweep's own database keep their artifacts beside it; a line says where they were to go."""
    here = (database.parent / ARTIFACTS).as_uri()
    with closing(sqlite3.connect(database)) as connection, connection:
        row = connection.execute("SELECT artifact_location FROM experiments WHERE name = ?", (sweep,)).fetchone()
        there = row[0] if row else here
        before = Path(unquote(urlsplit(there).path)).parent
        if there == here or not there.endswith(f"/{ARTIFACTS}") or _is_same(before, database.parent):
            return
        for table, column in _ADDRESSES:
            changed = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
            connection.execute(changed, (here, len(there) + 1, len(there), there))
    _logger.warning("%s: was at %s before; MLflow's artifacts are sought and kept here now", database.parent, before)


def is_copy(folder: Path, tags: Mapping[str, str]) -> bool:
    """Whether the run of these tags, which a server has for the folder's id, is that of another folder still there."""
    before = Path(tags.get("prefixray.folder", folder))
    with suppress(OSError):
        same_id = (before / ID_FILE).read_bytes() == (folder / ID_FILE).read_bytes()
        return same_id and not _is_same(before, folder)
    return False


def _is_same(one: Path, other: Path) -> bool:
    with suppress(OSError):
        return one.samefile(other)
    return False
