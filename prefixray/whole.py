"""Files that are there whole or not at all, whenever the process or the machine that writes them ends."""

import os
from pathlib import Path


def write_whole(path: Path, content: str) -> None:
    """Write a text file beside its place and put it there once it is on the disk; its folder must exist.

    Two processes may write the same file: one of them wins.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
