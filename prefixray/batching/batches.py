"""Examples become rows of token ids, and rows become batches of tensors.

In a batch rows stand side by side, padded on the right, or one behind another without padding (see
`model/binding/ragged.py`). Padding of a decoder needs no mask: under causal attention no token looks to its right.
"""

# B rows, S tokens of the longest row, E tokens of the longest encoder input, N target tokens or tokens of a line

import itertools
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefixray.batching.rows import Row, Tree
from prefixray.batching.template import Template
from prefixray.data import Example
from prefixray.data.teacher import Teacher
from prefixray.errors import UserError
from prefixray.model.backend import padded_count
from prefixray.model.uploads import Uploads

logger = logging.getLogger(__name__)

WIDTH_MULTIPLE = 16  # columns of an encoder-decoder's rows


def encode(examples: Sequence[Example], template: Template) -> list[Row]:
    """Tokenise examples in one go, each different source once. Logs how many texts fill their limits of tokens."""
    texts = list(dict.fromkeys(example.source for example in examples))
    prompts = {text: tuple(ids) for text, ids in zip(texts, template.encode_sources(texts), strict=True)}
    targets = template.encode_targets([example.target for example in examples])
    say_full([len(prompt) for prompt in prompts.values()], [len(ids) for ids in targets], template)
    rows = []
    for example, target in zip(examples, targets, strict=True):
        prompt = prompts[example.source]
        teacher = None if example.teacher is None else _teacher_of(example, example.teacher, len(target))
        decoder_prompt, encoder_ids = (template.target_before, prompt) if template.is_encoder_decoder else (prompt, ())
        row = Row((*decoder_prompt, *target), len(decoder_prompt), encoder_ids, template.num_after, teacher=teacher)
        rows.append(row)
    return rows


def say_full(prompts: Sequence[int], targets: Sequence[int], template: Template) -> None:
    """Log how many texts fill their limits, of different prompts and of targets, whose numbers of tokens are given."""
    full = template.max_source_tokens + len(template.before) + len(template.after)
    full_target = template.max_target_tokens + 1  # with the end token
    for what, lengths, whole, limit in (
        ("source", prompts, full, template.max_source_tokens),
        ("target", targets, full_target, template.max_target_tokens),
    ):
        if num_full := sum(length == whole for length in lengths):
            logger.info("%d of %d %ss fill the %d %s tokens", num_full, len(lengths), what, limit, what)


def _teacher_of(example: Example, teacher: Teacher, length: int) -> Teacher:
    """The teacher of a target that has been cut to `length` tokens."""
    if len(teacher) < length:
        raise UserError(
            f"task: the teacher of {example.target!r:.60} has seen {len(teacher)} of its {length} tokens: it was made "
            "with another template or a smaller max_target_tokens; make it again"
        )
    return teacher.cut(length)


@dataclass(frozen=True)
class Batch:
    """Rows as tensors."""

    inputs: Mapping[str, Tensor]  # the model's arguments: ids and positions (B, S), or ids and mask (B, E) and ids
    target_rows: Tensor  # (N,) the row of each target token, ascending
    targets: tuple[Tensor, Tensor]  # (N,) row and column of the inputs that predict each target token
    target_ids: Tensor  # (N,)


def collate_line(rows: Sequence[Row | Tree], *, to: Uploads) -> Batch:
    """Rows one behind another, for a decoder-only model: (1, N), with fillers to one of few lengths."""
    target_rows, columns, target_ids = _targets(rows)
    starts = torch.tensor([0, *itertools.accumulate(row.num_inputs for row in rows)])
    tokens = [token for row in rows for token in row.inputs]
    fillers = [0] * (padded_count(len(tokens)) - len(tokens))
    ids = torch.tensor([tokens + fillers])
    positions = torch.tensor([[position for row in rows for position in row.positions] + fillers])
    # Models use a mask of four dimensions as it is. Without one they would infer rows from positions and mask them.
    inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": ids.new_ones(1, 1, 1, 1)}
    targets = to.add(torch.stack([torch.zeros_like(target_rows), starts[target_rows] + columns])).unbind()
    put = {name: to.add(tensor) for name, tensor in inputs.items()}
    return Batch(put, to.add(target_rows), (targets[0], targets[1]), to.add(target_ids))


def collate(rows: Sequence[Row], *, pad_id: int, to: Uploads, max_positions: int | None = None) -> Batch:
    """Rows side by side, padded to the longest; targets are listed, so that the head is run on them alone.

    Both sides of an encoder-decoder's rows are filled up to few lengths (see `padded_count`), within `max_positions`.
    """
    target_rows, columns, target_ids = _targets(rows)
    if rows[0].encoder_ids:
        ids, _ = pad([row.ids[:-1] for row in rows], pad_id, multiple=WIDTH_MULTIPLE, limit=max_positions)
        sources = [row.encoder_ids for row in rows]
        encoder_ids, mask = pad(sources, pad_id, multiple=WIDTH_MULTIPLE, limit=max_positions)
        inputs = {"input_ids": encoder_ids, "attention_mask": mask, "decoder_input_ids": ids}
    else:
        ids, _ = pad([row.ids[:-1] for row in rows], pad_id)
        inputs = {"input_ids": ids, "position_ids": torch.arange(ids.shape[1]).expand_as(ids)}
    inputs = {name: to.add(tensor) for name, tensor in inputs.items()}
    if not rows[0].encoder_ids:  # without a mask, models look at positions for rows that stand one behind another
        inputs["attention_mask"] = torch.ones(ids.shape, dtype=torch.bool, device=to.device)
    of_targets = to.add(target_rows)
    return Batch(inputs, of_targets, (of_targets, to.add(columns)), to.add(target_ids))


def _targets(rows: Sequence[Row | Tree]) -> tuple[Tensor, Tensor, Tensor]:
    """Of each target token, row by row: its row, the column that predicts it, and its id; (N,) each."""
    targets = [(index, *target) for index, row in enumerate(rows) for target in row.targets]
    target_rows, columns, target_ids = torch.tensor(targets).t().contiguous().unbind()
    return target_rows, columns, target_ids


def pad(
    rows: Sequence[Sequence[int]], pad_id: int, *, multiple: int = 1, limit: int | None = None
) -> tuple[Tensor, Tensor]:
    """Rows padded on the right (B, S), and a mask that is 1 where a row's ids are.

    S is the length of the longest row, rounded up to the multiple as far as the limit allows.
    """
    longest = max(map(len, rows))
    ids = torch.full((len(rows), max(longest, min(padded_count(longest, multiple), limit or sys.maxsize))), pad_id)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return ids, mask
