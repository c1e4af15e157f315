"""What a model makes of the references of a split: their likelihoods, and how far it is from the teacher's."""

# N target tokens of some rows, V vocabulary

from collections.abc import Sequence

import torch
from torch import Tensor

from prefixray.batching.batches import encode
from prefixray.batching.lessons import taught_tokens
from prefixray.batching.rows import Row
from prefixray.data import Example, Sourced
from prefixray.decoding.forced import forced_logits
from prefixray.decoding.tuned_model import Tuned, running
from prefixray.model.uploads import Uploads
from prefixray.results.likelihoods import Likelihoods
from prefixray.training.loss import losses_of_logits


def read_references(tuned: Tuned, sources: Sequence[Sourced]) -> Likelihoods:
    """The sums over each source's first reference, at temperature 1.

    A reference is cut to the template's `max_target_tokens`, as a training target is.
    """
    examples = [Example(sourced.source, sourced.references[0], sourced.teacher) for sourced in sources]
    rows = encode(examples, tuned.template)
    has_teachers = all(row.teachers for row in rows)
    nll, divergence = [0.0] * len(rows), [0.0] * len(rows)
    with running(tuned) as base:
        for indices, logits, ids in forced_logits(base, tuned.template, tuned.insert, rows):
            of_batch = [rows[index] for index in indices]
            _put(nll, indices, of_batch, losses_of_logits(logits, ids, None))
            if has_teachers:
                _put(divergence, indices, of_batch, _divergences(logits, ids, of_batch))
    return Likelihoods([row.num_targets for row in rows], nll, divergence if has_teachers else None)


def _divergences(logits: Tensor, ids: Tensor, rows: Sequence[Row]) -> Tensor:
    """KL(teacher || model) over the teacher's outcomes at each target token, (N,)."""
    exact = torch.promote_types(logits.dtype, torch.float32)
    taught = taught_tokens(rows, [1.0] * len(rows), dtype=exact, to=Uploads(logits.device))
    return losses_of_logits(logits, ids, None, taught)


def _put(sums: list[float], indices: Sequence[int], rows: Sequence[Row], losses: Tensor) -> None:
    """The sum of each row's losses, given those of all their tokens, (N,), at the row's index."""
    for index, of_row in zip(indices, losses.split([row.num_targets for row in rows]), strict=True):
        sums[index] = float(of_row.double().sum())
