"""The teacher: what the base predicts at an answer's tokens while it sees the document."""

# B rows, N target tokens, V vocabulary, k likeliest tokens

from collections.abc import Callable, Sequence

import torch

from prefixray.batching.batches import collate, encode
from prefixray.batching.lessons import teach
from prefixray.batching.rows import Row
from prefixray.data import Example
from prefixray.data.teacher import Teacher
from prefixray.decoding.in_context import Context
from prefixray.model.backend import backend_for
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder
from prefixray.model.uploads import Uploads

TOP_K = 20
_MOST_TARGETS = 256  # of one forward: their logits over the whole vocabulary exist at once


def predict(
    base: Base, context: Context, examples: Sequence[Example], *, on_done: Callable[[int], None] = lambda _: None
) -> list[Teacher]:
    """What the base predicts at the target tokens of each example, the end token's place included."""
    rows = encode(examples, context.template)
    order = sorted(range(len(rows)), key=lambda index: -rows[index].num_inputs)
    found: dict[int, Teacher] = {}
    with torch.no_grad(), backend_for(base.device).decoding(base.model):
        for batch in _batches(order, rows):
            found |= zip(batch, _predict(base, context, [rows[index] for index in batch]), strict=True)
            on_done(len(batch))
    return [found[index] for index in range(len(rows))]


def _batches(order: Sequence[int], rows: Sequence[Row]) -> list[list[int]]:
    batches: list[list[int]] = []
    size = 0
    for index in order:
        size += rows[index].num_targets
        if not batches or size > _MOST_TARGETS:
            batches.append([])
            size = rows[index].num_targets
        batches[-1].append(index)
    return batches


def _predict(base: Base, context: Context, rows: Sequence[Row]) -> list[Teacher]:
    batch = collate(rows, pad_id=context.template.pad_id, to=Uploads(base.device))
    with Binder.of(base.model).bind([context.insert], [0] * len(rows), targets=batch.targets):
        logits = base.model(**batch.inputs, use_cache=False).logits  # (N, V)
    return [teach(of_row, TOP_K) for of_row in logits.split([row.num_targets for row in rows])]
