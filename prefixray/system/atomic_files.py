"""Files and folders that are there whole or not at all, whenever the process or the machine that writes them ends."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, content: str) -> None:
    """Write a text file beside its place and put it there once it is on the disk; its folder must exist.

    Two processes may write the same file: one of them wins.
    """
    scratch = _scratch(path)
    try:
        with scratch.open("w", encoding="utf-8", newline="\n") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        _sync(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A scratch folder, which takes the place of `folder` once all that the block has put there is on the disk.

    A block that raises leaves `folder` as it was, a killed one a scratch folder beside it, for `clear_scratch`.
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
    """Delete the scratch folders that killed writers of a folder have left; `name` may hold wildcards."""
    for path in parent.glob(f".{name}.*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def _scratch(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # a process ID is no name: containers share them


def _replace(folder: Path, scratch: Path) -> None:
    """Give `scratch` the name of `folder`; the folder that had it goes."""
    old = scratch.with_name(f"{scratch.stem}.old.tmp")
    if folder.exists():
        folder.rename(old)
    scratch.rename(folder)
    _sync(folder.parent)  # before the one that it replaces goes
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
