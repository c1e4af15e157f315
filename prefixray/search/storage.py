"""The journal files that hold a sweep's studies: `study.journal` of the search, `final.journal` of the final stage.

One driver at a time opens it, under the lock of the sweep's folder.
"""

from pathlib import Path
from typing import TypeAlias

from optuna import get_all_study_names
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

Storage: TypeAlias = JournalStorage


def repair_journal(path: Path) -> None:
    """Remove what a killed driver may have left: half a line at the end, and Optuna's lock."""
    if not path.exists():
        return
    journal = path.read_bytes()
    end = journal.rfind(b"\n") + 1
    if end < len(journal):
        with path.open("r+b") as file:
            file.truncate(end)
    for stale in path.parent.glob(f"{path.name}.lock*"):
        stale.unlink()


def has_studies(storage: Storage, beginnings: tuple[str, ...]) -> bool:
    """Whether the name of a study begins with one of these."""
    return any(name.startswith(beginnings) for name in get_all_study_names(storage))


def open_storage(journal: Path) -> Storage:
    """The storage of all studies of a sweep; a driver opens it once, since that reads the whole journal."""
    # Optuna's default lock is a link to the journal's path as given; with a relative path it waits for ever.
    lock = JournalFileOpenLock(str(journal))
    return JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))
