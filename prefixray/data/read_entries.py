"""Entries from files, folders and hub data sets.

All problems of all splits are reported at once, each with its file and line; what is left out is counted.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prefixray.data.entries import Entry, Form, LeftOut, Splits
from prefixray.data.hub import SPLIT_HINT, HubRows, is_saved, load_hub, load_saved
from prefixray.data.row_files import Row, find_splits, for_each_split, is_folder, read_rows
from prefixray.errors import UserError

logger = logging.getLogger(__name__)

_MOST_ALIKE = 3  # rows with the same problem that are named one by one
_MOST_REASONS = 3  # for which rows are left out, that are written out


def read_file(key: str, file: Path, form: Form) -> list[Entry]:
    """The entries of one file; `key` names the file in the sweep file. Raises `UserError` with all problems."""
    return _entries(str(file), f"{file}:", read_rows(key, file, form.problems), form)


def read_path(path: str, form: Form, *, hub_config: str | None = None) -> Splits:
    """The splits from the folder or the hub data set that `task.path` names. Raises `UserError` as `read_parts`."""
    return Splits(**read_parts(path, form, hub_config=hub_config))


def read_parts(
    path: str, form: Form, *, hub_config: str | None = None, optional: Collection[str] = ()
) -> dict[str, list[Entry]]:
    """The entries of each split from the folder or the hub data set that `task.path` names; `optional` ones may lack.

    Nobody here can mend a hub set, so its rows without a source or a target are left out; an optional split that has
    no others is taken as missing, such as a test split without labels. Raises `UserError` with all problems, and where
    a hub set cannot be loaded.
    """
    if not is_folder(path):
        remedy = "set task.path to a folder with train.jsonl, dev.jsonl and test.jsonl, whose columns are {} and {}"
        remedy = remedy.format(form.sources[0], form.targets[0])
        return _parts_of(path, load_hub(path, hub_config, remedy=remedy, optional=optional), form, optional)
    if is_saved(path):
        return _parts_of(path, load_saved(path, optional), form, optional)
    files = find_splits(path, optional)
    return for_each_split(lambda split: read_file("task.path", files[split], form), files)


def _parts_of(path: str, hub: Mapping[str, HubRows], form: Form, optional: Collection[str]) -> dict[str, list[Entry]]:
    """The entries of each split of a hub data set."""
    place, lenient = f"task.path: {path}", replace(form, leaves_out_empty=True)

    def read(split: str) -> list[Entry]:
        problems = form.problems(hub[split].columns)
        if len(problems) == 1 and split in optional and not set(form.targets) & set(hub[split].columns):
            logger.warning("%s: %s: %s: left out", place, split, "; ".join(problems))
            return []
        if problems:
            raise UserError(*(f"{place}: {split}: {problem}" for problem in problems))
        name, hint = f"{place}: {split}", "" if split == "train" else SPLIT_HINT
        rows = enumerate(hub[split].rows)
        return _entries(name, f"{name} row ", rows, lenient, hint=hint, is_optional=split in optional)

    return {split: entries for split, entries in for_each_split(read, hub).items() if entries}


def _entries(
    name: str,
    prefix: str,
    rows: Iterable[tuple[int, Row | str]],
    form: Form,
    *,
    hint: str = "",
    is_optional: bool = False,
) -> list[Entry]:
    """The entries of one split. In a message, `prefix` and the number of a row are its place.

    Where all rows are left out, an optional split has no entries, and of another one `hint` says what can be done.
    """
    entries: list[Entry] = []
    problems: list[tuple[int, str]] = []
    numbers: set[int] = set()
    left_out: Counter[str] = Counter()
    for number, row in rows:
        numbers.add(number)
        read = [row] if isinstance(row, str) else form.entry(row)
        match read:
            case LeftOut():
                left_out[read.why] += 1
            case Entry():
                entries.append(read)
            case _:
                problems += [(number, problem) for problem in read]
    if problems:
        raise UserError(*_grouped(name, prefix, problems, len(numbers)))
    if not entries and not left_out:
        raise UserError(f"{name}: has no rows")
    num_left_out, reasons = left_out.total(), _reasons(left_out)
    if not entries and not is_optional:
        raise UserError(f"{name}: all {num_left_out} rows are left out: {reasons}{hint}")
    if left_out:
        then = "" if entries else "; the split is taken out of train"
        count = f"{num_left_out} of {len(entries) + num_left_out}"
        logger.warning("%s: %s rows are left out: %s%s", name, count, reasons, then)
    return entries


def _reasons(left_out: Counter[str]) -> str:
    """Why rows are left out, each with how many; the most frequent reasons alone."""
    most = left_out.most_common(_MOST_REASONS)
    others = left_out.total() - sum(count for _, count in most)
    return ", ".join([f"{why} ({count})" for why, count in most] + [f"and {others} more"] * (others > 0))


def _grouped(name: str, prefix: str, problems: Sequence[tuple[int, str]], num_rows: int) -> list[str]:
    """The problems with their places; what more than a few rows have in common is said once."""
    places: dict[str, list[int]] = {}
    for number, problem in problems:
        places.setdefault(problem, []).append(number)
    lines = []
    for number, problem in problems:
        same = places[problem]
        if len(same) <= _MOST_ALIKE:
            lines.append(f"{prefix}{number}: {problem}")
        elif number == same[0]:
            others = ", ".join(map(str, same[1:_MOST_ALIKE]))
            is_all = len(same) == num_rows
            lines.append(
                f"{name}: all {num_rows} rows: {problem}"
                if is_all
                else f"{prefix}{number}: {problem} (the same in {len(same) - 1} more rows: {others} ..)"
            )
    return lines
