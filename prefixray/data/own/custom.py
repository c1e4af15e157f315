"""A user's own data: JSONL, CSV or Parquet files, a folder, or a hub data set, whose columns the sweep file names."""

from functools import partial
from itertools import islice

from prefixray.data.entries import DataConfig, Entry, Form, Splits
from prefixray.data.hub import is_saved
from prefixray.data.own.chat import ChatForm
from prefixray.data.own.split import completed
from prefixray.data.read_entries import read_file, read_parts
from prefixray.data.row_files import SPLITS, Row, find_splits, for_each_split, is_folder, read_rows
from prefixray.data.texts import is_empty
from prefixray.errors import UserError
from prefixray.system.path_or_hub import expanded


def load_own_data(config: DataConfig) -> Splits:
    """The files that `task.train`, `task.dev` and `task.test` name, or what `task.path` names.

    With `task.split`, dev and test may be missing: they are taken out of train. Rows with the same source are one
    source with several references. Raises `UserError` with all problems of all files, the first 20 written out.
    """
    form = own_form(config)
    optional = () if config.split is None else ("dev", "test")
    if config.path is not None:
        parts = read_parts(config.path, form, optional=optional)
    else:
        files = {"train": config.train, "dev": config.dev, "test": config.test}

        def read(split: str) -> list[Entry]:
            name = files[split]
            if name is None:
                raise UserError(f"task.{split}: {config.name} needs a JSONL, CSV or Parquet file here")
            return read_file(f"task.{split}", expanded(name), form)

        parts = for_each_split(read, [split for split in SPLITS if files[split] is not None or split not in optional])
    splits = Splits(**parts) if config.split is None else completed(parts, config.split)
    check_groups(form)
    return splits


def check_columns(config: DataConfig) -> None:
    """Look at the first row of each file: a wrong column is told at once, before anything that takes seconds to load.

    Raises `UserError` with the problems of all files. What only `datasets` can read is checked when it is loaded.
    """
    form = own_form(config)
    if config.path is None:
        names = {"train": config.train, "dev": config.dev, "test": config.test}
        files = {split: expanded(name) for split, name in names.items() if name is not None}
    elif is_folder(config.path) and not is_saved(config.path):
        files = find_splits(config.path, () if config.split is None else ("dev", "test"))
    else:
        return

    def check(split: str) -> None:
        key = f"task.{split}" if config.path is None else "task.path"
        for number, row in islice(read_rows(key, files[split], form.problems), 1):
            if isinstance(row, str):
                raise UserError(f"{files[split]}:{number}: {row}")

    for_each_split(check, files)


def own_form(config: DataConfig) -> Form:
    """Which columns are read, and how."""
    columns = config.columns
    make = Form if columns.messages is None else partial(ChatForm, chat=columns.messages)
    hint, group = " (set task.columns.{})", None if columns.group is None else _Groups(columns.group)
    return make((columns.source,), (columns.target,), hint=hint, group=group, takes_numbers=True)


def check_groups(form: Form) -> None:
    """Raise `UserError` where the task names a column of groups that no row has had which this form has read."""
    if isinstance(form.group, _Groups) and form.group.column not in form.group.columns:
        columns = ", ".join(form.group.columns)
        raise UserError(f'task.columns.group: no row has a "{form.group.column}" column; columns are {columns}')


class _Groups:
    """How a row names its group: as text in a column, which some rows may lack."""

    def __init__(self, column: str) -> None:
        self.column = column
        self.columns: dict[str, None] = {}
        """All columns of the rows so far."""

    def __call__(self, row: Row) -> str | None:
        self.columns |= dict.fromkeys(row)
        value = row.get(self.column)
        return None if is_empty(value) else str(value)
