"""Rows in a few arrays, and their cache on disk: each worker of each sweep would tokenise all examples, for seconds.

A file of the cache is named after all that its rows come from: the texts, the template, the tokenizer's own content and
the libraries' versions. It begins with a digest of the rest, so one that is damaged is never used.
"""

import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import tokenizers
import transformers
from numpy.typing import NDArray

from prefixray.batching.batches import encode, say_full
from prefixray.batching.lengths import Lengths
from prefixray.batching.rows import Row
from prefixray.batching.template import Template
from prefixray.data import Example
from prefixray.data.teacher import Teacher
from prefixray.system.atomic_files import write_whole
from prefixray.system.machine import cache_folder

logger = logging.getLogger(__name__)

FEWEST = 2000  # examples for which the cache is used: fewer are tokenised in a moment
KEPT = 16  # files, those that were used last
_FORM = 1  # of a file; a change of `encode` or of this module that changes rows takes the next number
_DIGEST_BYTES = hashlib.sha256().digest_size

Array = NDArray[np.int64] | NDArray[np.int32]


class PackedRows(Sequence[Row]):
    """Rows in arrays; a `Row` is made when it is asked for."""

    def __init__(self, arrays: Mapping[str, Array], teachers: Sequence[Teacher | None] = ()) -> None:
        """`arrays` as `arrays` below has them; `teachers`: one for each row, or none at all."""
        self.arrays = arrays
        """The ids of all rows, and where each row's end; the same of its encoder; its `num_prompt` and `num_after`."""
        self._teachers = teachers
        self._bounds = [0, *arrays["ends"].tolist()]
        self._encoder_bounds = [0, *arrays["encoder_ends"].tolist()]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "PackedRows":
        """The rows, which have no numbers yet."""
        lists: dict[str, tuple[Iterable[int], type]] = {
            "ids": (itertools.chain.from_iterable(row.ids for row in rows), np.int32),
            "ends": (itertools.accumulate(len(row.ids) for row in rows), np.int64),
            "encoder_ids": (itertools.chain.from_iterable(row.encoder_ids for row in rows), np.int32),
            "encoder_ends": (itertools.accumulate(len(row.encoder_ids) for row in rows), np.int64),
            "num_prompt": ((row.num_prompt for row in rows), np.int32),
            "num_after": ((row.num_after for row in rows), np.int32),
        }
        has_teachers = any(row.teacher is not None for row in rows)
        arrays: dict[str, Array] = {name: np.fromiter(values, kind) for name, (values, kind) in lists.items()}
        return cls(arrays, [row.teacher for row in rows] if has_teachers else ())

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number, arrays, ends, encoder_ends = range(len(self))[index], self.arrays, self._bounds, self._encoder_bounds
        return Row(
            tuple(arrays["ids"][ends[number] : ends[number + 1]].tolist()),
            int(arrays["num_prompt"][number]),
            tuple(arrays["encoder_ids"][encoder_ends[number] : encoder_ends[number + 1]].tolist()),
            int(arrays["num_after"][number]),
            teacher=self._teachers[number] if self._teachers else None,
        )

    @cached_property
    def longest(self) -> int:
        """Tokens that go into the decoder, of the longest row."""
        return int(self._num_inputs.max(initial=0))

    @cached_property
    def lengths(self) -> Lengths:
        """How long the rows are on average: what `row_lengths` says, without making them."""
        count, arrays = max(1, len(self)), self.arrays
        totals = len(arrays["encoder_ids"]), int(self._num_inputs.sum()), int(self.num_targets.sum())
        return Lengths(*(total / count for total in totals))

    @cached_property
    def digest(self) -> str:
        """A hash of all ids, and of where each row's parts end."""
        digest = hashlib.sha256()
        for name in sorted(self.arrays):
            digest.update(self.arrays[name].tobytes())
        return digest.hexdigest()[:16]

    @property
    def num_targets(self) -> NDArray[np.int64]:
        """Of each row."""
        return self._num_inputs + 1 - self.arrays["num_prompt"]

    @cached_property
    def _num_inputs(self) -> NDArray[np.int64]:
        return np.diff(self.arrays["ends"], prepend=0) - 1


def packed(examples: Sequence[Example], template: Template) -> PackedRows:
    """The examples' rows, as `encode` makes them: from the cache, else made, and kept there where that can be."""
    key = _key(examples, template)
    if key is None:
        return PackedRows.of(encode(examples, template))
    file = cache_folder() / "rows" / f"{key}.rows"
    rows = _read(file)
    if rows is None:
        rows = PackedRows.of(encode(examples, template))
        _keep(rows, file)
    else:
        sides = rows.arrays["encoder_ends"] if template.is_encoder_decoder else None
        prompts = rows.arrays["num_prompt"] if sides is None else np.diff(sides, prepend=0)
        by_source = dict(zip((example.source for example in examples), prompts.tolist(), strict=True))
        say_full(list(by_source.values()), rows.num_targets.tolist(), template)
    return rows


def _key(examples: Sequence[Example], template: Template) -> str | None:
    """A digest of all that the rows come from; None where they are few, are taught, or not all of it can be known.

    That is so of a tokenizer in Python: it, or code that came with the weights, may do anything.
    """
    tokenizer = template.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    is_own = not type(tokenizer).__module__.startswith("transformers.")
    is_taught = any(example.teacher is not None for example in examples)
    if len(examples) < FEWEST or backend is None or is_own or is_taught:
        return None
    versions = [_FORM, tokenizers.__version__, transformers.__version__, type(tokenizer).__qualname__]
    known = [*versions, getattr(tokenizer, "split_special_tokens", None), template.record(), template.vocab_size]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    digest.update(backend.to_str().encode())
    digest.update(json.dumps([text for example in examples for text in (example.source, example.target)]).encode())
    return digest.hexdigest()[:32]


def _read(file: Path) -> PackedRows | None:
    """The rows that a file of the cache holds; None where there is none, or it is damaged."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    digest, rest = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(rest).digest() != digest:
        logger.warning("%s is damaged: the rows are tokenised again", file)
        return None
    try:
        os.utime(file)  # it is used
    except OSError:  # in somebody else's folder
        logger.debug("%s cannot be marked as used", file)
    with np.load(io.BytesIO(rest)) as arrays:
        return PackedRows(dict(arrays))


def _keep(rows: PackedRows, file: Path) -> None:
    """Write a file of the cache, and delete those that were not used for long; do without where that cannot be."""
    file_of_arrays = io.BytesIO()
    np.savez(file_of_arrays, **rows.arrays)  # type: ignore[arg-type]  # its other argument is a switch
    content = file_of_arrays.getvalue()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, hashlib.sha256(content).digest() + content)
    except OSError as error:
        logger.info("tokenised rows are not kept in %s: %s", file.parent, error)
        return
    with contextlib.suppress(OSError):  # another process may delete the same files
        for old in sorted(file.parent.glob("*.rows"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
