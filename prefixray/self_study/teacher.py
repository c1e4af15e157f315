"""The teacher: what the base predicts at an answer's tokens while it sees the document."""

from collections.abc import Callable, Sequence

from prefixray.batching.batches import encode
from prefixray.batching.lessons import teach
from prefixray.data import Example
from prefixray.data.teacher import Teacher
from prefixray.decoding.forced import forced_logits
from prefixray.decoding.in_context import Context
from prefixray.model.base import Base

TOP_K = 20


def predict(
    base: Base,
    context: Context,
    examples: Sequence[Example],
    *,
    num_kept: int = TOP_K,
    on_done: Callable[[int], None] = lambda _: None,
) -> list[Teacher]:
    """What the base predicts at the target tokens of each example, the end token's place included.

    At each token the likelihoods of `num_kept` tokens are kept, fewer than the vocabulary has.
    """
    rows = encode(examples, context.template)
    found: dict[int, Teacher] = {}
    for indices, logits, _ in forced_logits(base, context.template, context.insert, rows):
        of_rows = logits.split([rows[index].num_targets for index in indices])
        found |= {index: teach(of_row, num_kept) for index, of_row in zip(indices, of_rows, strict=True)}
        on_done(len(indices))
    return [found[index] for index in range(len(rows))]
