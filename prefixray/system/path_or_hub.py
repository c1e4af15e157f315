"""The name of a base or a data set, as a user gives it: a path on this machine, or a hub id like owner/name.

A path that exists here is always meant as that path, even where a hub id reads the same.
"""

from pathlib import Path


def local_path(name: str) -> Path | None:
    """The file or folder on this machine that has this name; None where there is none."""
    path = Path(name).expanduser()
    return path if path.exists() else None


def is_path(name: str) -> bool:
    """Whether the name can only be a path, not a hub id."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def leads_nowhere(name: str) -> bool:
    """Whether the name can only be a path, and nothing is there."""
    return is_path(name) and local_path(name) is None
