"""What a teacher expects at target tokens, as tensors, and which tokens of a batch are taught.

Of the vocabulary the teacher has kept k tokens, and the likelihood of all others together. So there are k + 1 outcomes:
each of these tokens, and any other one. The loss is the Kullback-Leibler divergence KL(teacher || student) over the
outcomes. It is never above the divergence over the vocabulary, and short of it by the tail's likelihood times the
divergence inside the tail, of which the teacher tells nothing.

A temperature T raises the likelihood of each outcome to the power 1 / T, the teacher's and the student's alike, and
both are normalised again; the loss is multiplied by T squared, so that gradients keep their size (Hinton et al. 2015,
section 2). With any temperature the loss is 0 only where the outcomes are as likely for both. The tail is one outcome,
however many tokens it has: tempered token by token, as a whole teacher's could be, it would be more likely where T is
above 1.
"""

# M target tokens that are taught, k tokens of the vocabulary that the teacher has kept, V vocabulary

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prefixray.batching.rows import Row, Tree
from prefixray.data.teacher import Teacher
from prefixray.model.uploads import Uploads


@dataclass(frozen=True)
class Lessons:
    """What the teacher expects at each of M target tokens."""

    ids: Tensor  # (M, k)
    log_p: Tensor  # (M, k + 1) log-likelihoods of the outcomes, the tail last; tempered
    temperature: Tensor  # (M, 1)

    def __getitem__(self, tokens: slice) -> "Lessons":
        """Those of some of the tokens."""
        return Lessons(self.ids[tokens], self.log_p[tokens], self.temperature[tokens])


@dataclass(frozen=True)
class Taught:
    """The target tokens of a micro-batch that are taught, and the others."""

    tokens: Tensor  # (M,) ascending
    others: Tensor
    lessons: Lessons


def taught_tokens(
    rows: Sequence[Row | Tree], temperatures: Sequence[float | None], *, dtype: torch.dtype, to: Uploads
) -> Taught | None:
    """What the rows with a temperature are taught; None where no row has one. The host tempers it."""
    chosen = [
        (row, temperature) for row, temperature in zip(rows, temperatures, strict=True) if temperature is not None
    ]
    if not chosen:
        return None
    counts = [row.num_targets for row in rows]
    is_taught = np.repeat([temperature is not None for temperature in temperatures], counts)
    teachers = [teacher for row, _ in chosen for teacher in row.teachers]
    assert len({teacher.num_kept for teacher in teachers}) == 1, "teachers of one task keep as many tokens"
    outcomes = np.concatenate([np.column_stack([teacher.log_p, teacher.tail]) for teacher in teachers])
    ids = np.concatenate([teacher.ids for teacher in teachers])
    per_token = np.repeat([temperature for _, temperature in chosen], [row.num_targets for row, _ in chosen])
    temperature = torch.from_numpy(per_token).to(dtype)[:, None]
    log_p = torch.log_softmax(torch.from_numpy(outcomes).to(dtype) / temperature, dim=1)
    tokens, others = (to.add(torch.from_numpy(np.flatnonzero(part))) for part in (is_taught, ~is_taught))
    lessons = Lessons(*(to.add(part) for part in (torch.from_numpy(ids).long(), log_p, temperature)))
    return Taught(tokens, others, lessons)


def teach(logits: Tensor, num_kept: int) -> Teacher:
    """The teacher whose logits at the tokens of a target are (n, V): its most likely tokens are kept, fewer than V."""
    log_p = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)
    kept = log_p.topk(min(num_kept, logits.shape[1] - 1), dim=1)
    tail = log_p.scatter(1, kept.indices, -math.inf).logsumexp(dim=1)
    ids, likely, others = (part.cpu().numpy() for part in (kept.indices, kept.values, tail))
    return Teacher(ids.astype(np.int32), likely.astype(np.float32), others.astype(np.float32))
