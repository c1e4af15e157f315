"""The sweep files that ship with prefixray: `sweeps/` in a checkout is `prefixray/sweeps` in the wheel.

A document that a sweep file is about lies beside it under the same name, with the suffix .md, and is copied with it.
"""

from collections.abc import Mapping
from pathlib import Path

import prefixray
from prefixray.errors import UserError, disk_problem
from prefixray.system.atomic_files import write_whole

_FOLDER = Path(prefixray.__file__).parent / "sweeps"


def shipped_sweeps() -> Mapping[str, Path]:
    """Each shipped sweep file by its name: quickstart, paper/e2e."""
    files = sorted([*_FOLDER.glob("*.yaml"), *_FOLDER.glob("*/*.yaml")], key=lambda file: (len(file.parts), file))
    return {file.relative_to(_FOLDER).with_suffix("").as_posix(): file for file in files}


def first_sentence(file: Path) -> str:
    """What a sweep file's opening comment says first, up to its first full stop or the comment's end."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    sentence, stop, _ = f"{' '.join(lines)} ".partition(". ")
    return f"{sentence.strip()}{'.' if stop else ''}"


def copy_sweeps(names: Mapping[str, Path], folder: Path, *, overwrite: bool) -> list[Path]:
    """Copy these files, by their names, into a folder, and documents beside them; returns the copies of sweep files.

    A copy names its document where that is now.

    Without `overwrite`, a file that is there already stays, and nothing is copied: raises `UserError` for each, and
    where a file cannot be written.
    """
    sweeps = {folder / f"{name}.yaml": file for name, file in names.items()}
    beside = {copy.with_suffix(".md"): file.with_suffix(".md") for copy, file in sweeps.items()}
    copies = {**sweeps, **{copy: file for copy, file in beside.items() if file.is_file()}}
    there = [copy for copy in copies if copy.exists() and not overwrite]
    if there:
        raise UserError(*(f"{copy}: exists; --force overwrites it, --out copies into another folder" for copy in there))
    for copy, file in copies.items():
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            text = file.read_text(encoding="utf-8")
            document = copy.with_suffix(".md")
            write_whole(copy, text.replace(f"sweeps/{document.name}", document.as_posix()) if copy in sweeps else text)
        except OSError as error:
            raise UserError(f"{copy}: cannot be written: {disk_problem(error)}") from error
    return list(sweeps)
