"""Data sets of the Hugging Face hub, as rows. `datasets` is imported here alone, when a data set is loaded."""

from collections.abc import Iterable
from dataclasses import dataclass

from prefixray.data.row_files import SPLITS, Row
from prefixray.errors import UserError, first_line


@dataclass(frozen=True)
class HubRows:
    """A split: its columns, and its rows, which are read from disk one by one."""

    columns: tuple[str, ...]
    rows: Iterable[Row]


def load_hub(name: str, config: str | None, *, remedy: str, dev: str = "validation") -> dict[str, HubRows]:
    """The three splits of a hub data set, by our names.

    `dev` is the name of that split in the hub's own export. Raises `UserError`: with the `remedy` where the set cannot
    be loaded, and where a split is missing.
    """
    import datasets  # type: ignore[import-untyped, unused-ignore]  # takes a second, and most tasks do not need it

    try:
        try:
            hub = datasets.load_dataset(name, config)
        except RuntimeError:  # the set is a loading script, which `datasets` no longer runs: take the hub's own export
            export = f"hf://datasets/{name}@refs/convert/parquet/{config or 'default'}"
            files = {split: f"{export}/{split}/*.parquet" for split in ("train", dev, "test")}
            hub = datasets.load_dataset("parquet", data_files=files)
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"task.path: {name}: no such folder, nor can a hub data set be loaded: {first_line(error)}; {remedy}"
        ) from error
    named = {split: [name for name in names if name in hub] for split, names in SPLITS.items()}
    missing = [split for split, names in named.items() if not names]
    if missing:
        raise UserError(f"task.path: {name}: has no split {', '.join(missing)}; its splits are {', '.join(hub)}")
    rows = {split: hub[names[0]] for split, names in named.items()}
    return {split: HubRows(tuple(each.column_names), each) for split, each in rows.items()}
