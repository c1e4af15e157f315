"""Dev and test out of a training set, where a user's data does not have them.

A hash of a source decides on its part. So all rows of a source are in one part, the order of the rows does not matter,
and a source keeps its part when other rows are added.
"""

import hashlib
from collections.abc import Mapping, Sequence

from prefixray.data.entries import Entry, SplitConfig, Splits
from prefixray.errors import UserError


def completed(parts: Mapping[str, Sequence[Entry]], config: SplitConfig) -> Splits:
    """The splits, with dev and test taken out of train where they are not among the parts.

    Raises `UserError` where train has too few sources for that.
    """
    shares = {name: share for name, share in (("test", config.test), ("dev", config.dev)) if name not in parts}
    positions = {entry.source: _position(entry.source, config.seed) for entry in parts["train"]}
    if len(positions) <= len(shares):
        count = f"{len(positions)} different source{'s' * (len(positions) != 1)}"
        raise UserError(f"task.split: the training rows have {count}, too few to take {' and '.join(shares)} from them")
    chosen: dict[str, set[str]] = {}
    low, left = 0.0, sorted(positions, key=positions.__getitem__)
    for name, share in shares.items():
        # never empty: of a few sources none may lie below the share
        chosen[name] = {source for source in left if positions[source] < low + share} or set(left[:1])
        left = [source for source in left if source not in chosen[name]]
        low += share
    if not left:
        raise UserError("task.split: leaves no source for train: make the shares smaller")
    taken = {source for sources in chosen.values() for source in sources}
    splits = {name: [entry for entry in parts["train"] if entry.source in sources] for name, sources in chosen.items()}
    train = [entry for entry in parts["train"] if entry.source not in taken]
    return Splits(**{**parts, **splits, "train": train})


def _position(source: str, seed: int) -> float:
    """Where the source lies between 0 and 1."""
    return int(hashlib.sha256(f"split/{seed}/{source}".encode()).hexdigest()[:16], 16) / 2**64
