"""Data sets of the Hugging Face hub, as rows. `datasets` is imported here alone, when a data set is loaded."""

from collections.abc import Iterable
from dataclasses import dataclass

from prefixray.data.row_files import SPLITS, Row
from prefixray.errors import UserError, first_line


@dataclass(frozen=True)
class HubRows:
    """A split: its rows, read from disk while it is iterated, and their columns."""

    columns: tuple[str, ...]
    rows: Iterable[Row]


def load_hub(name: str, config: str | None, *, remedy: str, dev: str = "validation") -> dict[str, HubRows]:
    """The three splits of a hub data set, by our names.

    `dev` is what the hub's own export calls that split. Raises `UserError` where the set cannot be loaded, with the
    `remedy`, and where a split is missing.
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
    found = {split: [hub[each] for each in names if each in hub] for split, names in SPLITS.items()}
    missing = [split for split, several in found.items() if not several]
    if missing:
        raise UserError(f"task.path: {name}: has no split {', '.join(missing)}; its splits are {', '.join(hub)}")
    return {split: HubRows(tuple(several[0].column_names), several[0]) for split, several in found.items()}
