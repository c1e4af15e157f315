"""A user's own data: JSONL or CSV files, plain or gzipped, or a hub data set, whose columns the sweep file names."""

from collections.abc import Callable

from prefixray.data.entries import DataConfig, Entry, Form, Splits, read_file, read_path
from prefixray.data.row_files import Row, for_each_split
from prefixray.errors import UserError
from prefixray.system.path_or_hub import expanded


def load_own_data(config: DataConfig) -> Splits:
    """The files that `task.train`, `task.dev` and `task.test` name, or what `task.path` names.

    Rows with the same source are one source with several references. Raises `UserError` with all problems of all
    files, the first 20 written out.
    """
    columns = config.columns
    form = Form((columns.source,), (columns.target,), hint=" (set task.columns.{})", group=_group_of(columns.group))
    if config.path is not None:
        return read_path(config.path, form)
    files = {"train": config.train, "dev": config.dev, "test": config.test}

    def read(split: str) -> list[Entry]:
        name = files[split]
        if name is None:
            raise UserError(f"task.{split}: {config.name} needs a JSONL or CSV file here")
        return read_file(f"task.{split}", expanded(name), form)

    return Splits(**for_each_split(read))


def _group_of(column: str | None) -> Callable[[Row], str | None] | None:
    """How a row names its group: as text in a column, which some rows may lack."""
    return None if column is None else lambda row: None if row.get(column) is None else str(row[column])
