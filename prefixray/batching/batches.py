"""Examples -> token ids -> batches.

A template says how texts become tokens. A decoder-only model reads source, separator and target as one row: plain, as
the original did (a space, the source, a space, the separator; then a space, the target, a space, the end token: so
" name : Aromi" starts with a space token as words inside a text do), or as a chat. An encoder-decoder model reads the
source in its encoder and the target in its decoder, each with the special tokens that its tokenizer puts around it.
Rows are sorted by length and cut into micro-batches under a token budget. In one they stand side by side, where right
padding of the decoder needs no mask under causal attention, or one behind another without padding (see `line`).
"""

# B rows, S tokens of the longest row, E tokens of the longest encoder input

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
from prefixray.model.backend import padded_count

logger = logging.getLogger(__name__)

WIDTH_MULTIPLE = 16  # columns of an encoder-decoder's rows


def encode(examples: Sequence[Example], template: Template) -> list[Row]:
    """Tokenise examples in one go; repeated sources once. Logs how many sources were cut."""
    texts = list(dict.fromkeys(example.source for example in examples))
    prompts = {text: tuple(ids) for text, ids in zip(texts, template.encode_sources(texts), strict=True)}
    targets = template.encode_targets([example.target for example in examples])
    full = template.max_source_tokens + len(template.before) + len(template.after)
    num_cut = sum(len(prompt) == full for prompt in prompts.values())
    if num_cut:
        logger.info("%d of %d sources fill the %d source tokens", num_cut, len(texts), template.max_source_tokens)
    rows = []
    for example, target in zip(examples, targets, strict=True):
        prompt = prompts[example.source]
        given, encoder = (template.target_before, prompt) if template.is_encoder_decoder else (prompt, ())
        rows.append(Row((*given, *target), len(given), encoder, template.num_after))
    return rows


@dataclass(frozen=True)
class Batch:
    """Rows as tensors."""

    inputs: Mapping[str, Tensor]  # what the model is called with: ids and positions (B, S), or ids and mask (B, E), ..
    target_rows: Tensor  # (N,) the row of each target token, rows in order
    targets: tuple[Tensor, Tensor]  # (N,) row and column of the inputs that predict it
    target_ids: Tensor  # (N,)


def collate_line(rows: Sequence[Row | Tree], *, device: torch.device) -> Batch:
    """Rows one behind another, for a decoder-only model: (1, N), with fillers to the length of a line."""
    where, columns, wanted = _targets(rows, device)
    starts = torch.tensor([0, *itertools.accumulate(row.num_inputs for row in rows)], device=device)
    tokens = [token for row in rows for token in row.inputs]
    fillers = [0] * (padded_count(len(tokens)) - len(tokens))
    ids = torch.tensor([tokens + fillers], device=device)
    places = [place for row in rows for place in row.places]
    positions = torch.tensor([places + fillers], device=device)
    # A mask of four dimensions is taken as it is, where models would look for rows in the positions and make one.
    inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": ids.new_ones(1, 1, 1, 1)}
    return Batch(inputs, where, (torch.zeros_like(where), starts[where] + columns), wanted)


def collate(rows: Sequence[Row], *, pad_id: int, device: torch.device, max_positions: int | None = None) -> Batch:
    """Pad rows to the longest; targets are listed, so that the head is run on them alone.

    Both sides of an encoder-decoder's rows are filled up to few lengths (see `padded_count`), within `max_positions`.
    """
    where, columns, wanted = _targets(rows, device)
    if rows[0].encoder_ids:
        ids, _ = pad([row.ids[:-1] for row in rows], pad_id, multiple=WIDTH_MULTIPLE, limit=max_positions)
        texts = [row.encoder_ids for row in rows]
        encoder_ids, mask = pad(texts, pad_id, multiple=WIDTH_MULTIPLE, limit=max_positions)
        inputs = {"input_ids": encoder_ids, "attention_mask": mask, "decoder_input_ids": ids}
    else:
        ids, _ = pad([row.ids[:-1] for row in rows], pad_id)
        inputs = {"input_ids": ids, "position_ids": torch.arange(ids.shape[1]).expand_as(ids)}
    return Batch({name: tensor.to(device) for name, tensor in inputs.items()}, where, (where, columns), wanted)


def _targets(rows: Sequence[Row | Tree], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of each target token, rows in order: its row, the column of its row that predicts it, and its id; (N,) each."""
    targets = [(index, *target) for index, row in enumerate(rows) for target in row.targets]
    where, columns, wanted = torch.tensor(targets, device=device).unbind(1)
    return where, columns, wanted


def pad(
    rows: Sequence[Sequence[int]], pad_id: int, *, multiple: int = 1, limit: int | None = None
) -> tuple[Tensor, Tensor]:
    """Rows padded on the right (B, S), and a mask that is 1 on their own ids.

    S is the next multiple of the longest, or the limit where that is less, and no less than the longest.
    """
    longest = max(map(len, rows))
    ids = torch.full((len(rows), max(longest, min(padded_count(longest, multiple), limit or sys.maxsize))), pad_id)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return ids, mask
