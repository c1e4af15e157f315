"""The logits with which a model predicts given targets: nothing is decoded, each target is read."""

# B rows, N target tokens, V vocabulary

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from prefixray.batching.batches import collate
from prefixray.batching.rows import Row
from prefixray.batching.template import Template
from prefixray.decoding.in_context import most_rows
from prefixray.model.backend import backend_for
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.insert import Insert
from prefixray.model.uploads import Uploads

_MOST_TARGETS = 256  # of one forward: their logits over the whole vocabulary exist at once


def forced_logits(
    base: Base, template: Template, insert: Insert, rows: Sequence[Row]
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Indices of rows, the logits at all their target tokens, (N, V), and these tokens' ids, (N,); the longest first.

    All rows run under the insert. The model of `base` may be a trial's own copy.
    """
    order = sorted(range(len(rows)), key=lambda index: -rows[index].num_inputs)
    roomy = [row.with_room(insert.infix_length, template.pad_id) for row in rows]
    binder, limit = Binder.of(base.model), base.shape.max_positions
    with backend_for(base.device).decoding(base.model):
        for indices in _batches(order, rows, most_rows(insert)):
            of_batch = [roomy[index] for index in indices]
            batch = collate(of_batch, pad_id=template.pad_id, to=Uploads(base.device), max_positions=limit)
            starts = [row.infix_start for row in of_batch]
            with (
                torch.no_grad(),
                binder.bind([insert], [0] * len(of_batch), targets=batch.targets, infix_starts=starts),
            ):
                logits = base.model(**batch.inputs, use_cache=False).logits
            yield indices, logits, batch.target_ids


def _batches(order: Sequence[int], rows: Sequence[Row], most: int) -> list[list[int]]:
    """The rows in batches of at most so many rows and `_MOST_TARGETS` targets, in this order."""
    batches: list[list[int]] = []
    size = 0
    for index in order:
        size += rows[index].num_targets
        if not batches or size > _MOST_TARGETS or len(batches[-1]) == most:
            batches.append([])
            size = rows[index].num_targets
        batches[-1].append(index)
    return batches
