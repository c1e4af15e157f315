"""The names of a sweep: its results folder, its name under `runs/`, its YAML file, or the name of that file.

A sweep that has results goes by its name wherever a command takes a folder. A sweep file goes by its name too: the file
may lie in `sweeps/` here, beside the results, or in the installed package.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from prefixray.config.files.shipped import shipped_sweeps
from prefixray.config.scales import apply_scales
from prefixray.errors import UserError
from prefixray.system.yaml_document import read_document, suggestion

_RUNS = Path("runs")
_SUFFIXES = (".yaml", ".yml")


def find_sweep(where: Path | str, scales: Sequence[str] = ()) -> Path:
    """The results folder of a sweep, given as that folder, as its name under runs/, or as the sweep file.

    With scales, a folder or a name is that of the sweep without them. Raises `UserError` where there are no results.
    """
    path = Path(where)
    if path.suffix in _SUFFIXES:
        document = read_document(path)
        apply_scales(document, scales)
        document.raise_problems()
        name = document.values.get("name")
        if not isinstance(name, str):
            raise UserError(f"{path}: name: required, but missing")
        folder = _RUNS / name
        if not _has_results(folder):
            raise UserError(f"{path}: no results in {folder} yet (prefixray sweep {path})")
        return folder
    named = Path("-".join((str(path), *scales)))
    for folder in (named, _RUNS / named):
        if _has_results(folder):
            return folder
    names = sorted(folder.name for folder in _RUNS.glob("*") if _has_results(folder))
    hint = suggestion(str(named), names, what=f"in {_RUNS} there are")
    hint = hint or " (`prefixray sweep FILE` makes one)"
    raise UserError(f"{named}: is no results folder, no name under {_RUNS}/ and no sweep file{hint}")


def find_sweep_file(where: Path | str) -> Path:
    """The YAML of a sweep, given as that file, by its name, or by its results folder or that folder's name.

    A path with the ending of a YAML file is returned as it is; whoever reads it says what is wrong with it. For a name,
    the first of `NAME.yaml`, `sweeps/NAME.yaml`, the copy in `runs/NAME` and the file that ships with prefixray is
    taken. Raises `UserError` where there is none.
    """
    path = Path(where)
    if path.suffix in _SUFFIXES or path.is_file():
        return path
    shipped = shipped_sweeps()
    places = [path.parent / f"{path.name}.yaml", Path("sweeps") / f"{path}.yaml"]
    places += [folder / "sweep.yaml" for folder in (path, _RUNS / path) if _has_results(folder)]
    places += [file for name, file in shipped.items() if name == str(path)]
    found = next((place for place in places if place.is_file()), None)
    if found is not None:
        return found
    here = [file.relative_to("sweeps").with_suffix("").as_posix() for file in Path("sweeps").glob("**/*.yaml")]
    hint = suggestion(str(path), [*here, *shipped], what="") or " (prefixray examples lists those that ship with it)"
    raise UserError(f"{path}: is no sweep file and no name of one{hint}")


def check_options(file: Path, name: str, overrides: Sequence[str], scales: Sequence[str] = ()) -> None:
    """Refuse the copy of its file in a sweep's folder where options had given that sweep its name, and are missing now.

    `name` is that of the sweep which the copy would start, another one. Raises `UserError`.
    """
    if file.name != "sweep.yaml" or not _has_results(file.parent):
        return
    if scales or any(override.partition("=")[0].strip() == "name" for override in overrides):
        return
    with suppress(ValueError, KeyError):  # it is damaged
        made = json.loads((file.parent / "sweep.json").read_text(encoding="utf-8"))["name"]
        if made != name:
            problem = f"lies in the folder of the sweep {made}, and is the file of the sweep {name}"
            remedy = f"give the options again that had named {made} (--scale, or --set name={made} and others)"
            raise UserError(f"{file}: {problem}; {remedy}, or copy the file elsewhere if {name} is meant")


def _has_results(folder: Path) -> bool:
    return (folder / "sweep.json").is_file()
