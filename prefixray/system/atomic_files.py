"""Files and folders that exist whole or not at all, even if the process or the machine dies while they are written."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under a scratch name, text in UTF-8, and rename it once it is on the disk; its folder must exist.

    Two processes may write the same file: the file is then whole, and of one of them.
    """
    scratch = _scratch(path)
    try:
        with scratch.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        _sync(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A scratch folder for the block to fill; it replaces `folder` once all its files are on the disk.

    A block that raises leaves `folder` as it was. A killed process leaves its scratch folder too: see `clear_scratch`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = _scratch(folder)
    scratch.mkdir()
    try:
        yield scratch
        for path in (*scratch.iterdir(), scratch):
            _sync(path)
        _replace(folder, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def clear_scratch(parent: Path, name: str) -> None:
    """Delete the scratch folders that killed processes have left beside a folder; `name` may hold wildcards."""
    for path in parent.glob(f".{name}.*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def _scratch(path: Path) -> Path:
    return path.with_name(
        f".{path.name}.{uuid.uuid4().hex}.tmp"
    )  # not the process ID: two containers may have the same


def _replace(folder: Path, scratch: Path) -> None:
    """Rename `scratch` to `folder`, and delete the folder that had that name."""
    old = scratch.with_name(f"{scratch.stem}.old.tmp")
    if folder.exists():
        folder.rename(old)
    scratch.rename(folder)
    _sync(folder.parent)  # before the old folder is deleted
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
