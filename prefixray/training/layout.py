"""How rows become micro-batches.

Rows of a decoder-only base run in a line: one behind another, without padding, and rows with the same prompt form a
tree. Where the base or a trial's insert cannot run in a line, rows run side by side, padded on the right. In an
evaluation such rows run their shared prompts once (see `prefill`); in training gradients pass through the prompts, so
every row runs whole. Either way rows are sorted by length and cut into micro-batches under a token budget.
"""

# B rows of a micro-batch

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from prefixray.batching.batches import WIDTH_MULTIPLE, Batch, collate, collate_line
from prefixray.batching.lengths import cut_by_length, cut_evenly
from prefixray.batching.rows import Row, Tree
from prefixray.batching.shared_prompts import trees
from prefixray.model.backend import TOKEN_MULTIPLE, backend_for, padded_count
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.insert import Insert
from prefixray.model.binding.ragged import GROUP_MULTIPLE, Ragged
from prefixray.model.uploads import Uploads
from prefixray.training.base_checks import knows_lines
from prefixray.training.device.costs import Costs
from prefixray.training.prefill import RowGroup, row_groups

logger = logging.getLogger(__name__)

# What was not measured on the device itself (see `device/costs.py`).
TOKEN_BUDGET = {"cpu": 2048, "cuda": 65536}  # tokens per micro-batch, padding included, to start from
PIECE_COST = {"cpu": 192, "cuda": 8192}  # tokens that could be run in the time one more micro-batch takes by itself
GROUP_COST = {"cpu": 64, "cuda": 8192}  # tokens that could attend in the time one more group of a line takes by itself
LONGEST_TREE = 512  # tokens of rows that share a prompt: attention in a longer tree costs more than the prompt again


@dataclass(frozen=True)
class MicroBatch:
    """Rows that run in one forward, as tensors, and what is bound to each of them."""

    batch: Batch
    uploads: Uploads  # what of it has still to be sent
    used: Sequence[int]  # the numbers of the inserts among all of its group
    inserts: Sequence[Insert]
    row_inserts: Sequence[int]  # (B,) index of each row's insert, ascending
    row_members: Sequence[int]  # (B,) index of each row's member
    infix_starts: Sequence[int]  # (B,) the column where an infix starts; empty for a line, which has no infixes
    line: Ragged | None  # None: the rows stand side by side
    rows: Sequence[Row | Tree]  # (B,)
    row_numbers: Sequence[int] = ()  # (B,) of rows in their step; empty where rows share prompts
    num_targets: Sequence[int] = ()  # (B,)


class Layout:
    """How rows of one base are laid out."""

    def __init__(self, base: Base, binder: Binder, pad_id: int) -> None:
        self._base, self._binder, self._pad_id = base, binder, pad_id
        self.costs: Costs | None = None  # measured on the device; None: those of any of its kind
        self.knows_lines = knows_lines(base, binder)
        if not (self.knows_lines or base.shape.is_encoder_decoder):
            logger.info("rows of this base run side by side, not one behind another")

    def micro_batches(
        self,
        binder: Binder,
        inserts: Sequence[Insert],
        rows: Sequence[Sequence[Row]],
        *,
        token_budget: int,
        train: bool,
        whole: bool = False,
    ) -> Iterator[MicroBatch]:
        """All rows of all members, `rows[i]` under `inserts[i]`, in pieces of like length.

        `binder` is that of the model which the rows run in. In an evaluation it runs shared prompts between the pieces.
        `whole` rows share no prompts.
        """
        in_line = self.knows_lines and all(insert.fits_lines for insert in inserts)
        if in_line:
            shared = (list(own) if whole else trees(own, LONGEST_TREE, token_budget) for own in rows)
            groups = iter([_one_group(inserts, shared)])
        elif train:
            pairs = zip(inserts, rows, strict=True)
            roomy = ([row.with_room(insert.infix_length, self._pad_id) for row in own] for insert, own in pairs)
            groups = iter([_one_group(inserts, roomy)])
        else:
            sizes = {"pad_id": self._pad_id, "token_budget": token_budget}
            groups = row_groups(binder, inserts, rows, **sizes, device=self._base.device)
        for group in groups:
            lengths = [row.lengths for _, row in group.rows]
            if in_line:
                pieces = cut_evenly([num_inputs for _, num_inputs in lengths], token_budget)
            else:
                costs = self.costs
                piece_cost = PIECE_COST[self._base.device.type] if costs is None else costs.piece
                pieces = cut_by_length(lengths, token_budget, piece_cost)
            for piece in pieces:
                chosen = sorted((group.rows[index] for index in piece), key=lambda pair: pair[0])
                yield self._collate(group, chosen, token_budget if in_line else None)

    def _collate(
        self, group: RowGroup, chosen: Sequence[tuple[int, Row | Tree]], line_budget: int | None
    ) -> MicroBatch:
        """The micro-batch of these rows of a group: in a line where that has a budget, else side by side."""
        used, rows = sorted({index for index, _ in chosen}), [row for _, row in chosen]
        inserts = [group.inserts[index] for index in used]
        row_inserts = [used.index(index) for index, _ in chosen]
        row_members = [group.slots[index] for index, _ in chosen]
        uploads = Uploads(self._base.device, _num_bytes(rows, in_line=line_budget is not None))
        single = [row for row in rows if isinstance(row, Row)]
        of_rows = [row.number for row in single] if len(single) == len(rows) else [], [row.num_targets for row in rows]
        of_inserts = used, inserts, row_inserts, row_members
        if line_budget is not None:
            batch = collate_line(rows, to=uploads)
            line = self._line((inserts, row_inserts), rows, line_budget, uploads)
            return MicroBatch(batch, uploads, *of_inserts, (), line, rows, *of_rows)
        assert len(single) == len(rows), "trees stand in lines"
        batch = collate(single, pad_id=self._pad_id, to=uploads, max_positions=self._base.shape.max_positions)
        return MicroBatch(batch, uploads, *of_inserts, [row.infix_start for row in single], None, rows, *of_rows)

    def _line(
        self,
        of_inserts: tuple[Sequence[Insert], Sequence[int]],
        rows: Sequence[Row | Tree],
        token_budget: int,
        uploads: Uploads,
    ) -> Ragged:
        """The line of these rows, in groups of like length that attend together.

        Rows of a trial with a long prefix form groups of their own; rows of all other trials share groups.
        """
        inserts, row_inserts = of_inserts
        has_long_prefix = [self._binder.has_long_prefix(insert) for insert in inserts]
        together: dict[int, list[int]] = {}  # rows by their trial, or by -1
        for index, insert in enumerate(row_inserts):
            together.setdefault(insert if has_long_prefix[insert] else -1, []).append(index)
        lengths = [(0, padded_count(row.num_inputs, GROUP_MULTIPLE)) for row in rows]
        group_cost = GROUP_COST[self._base.device.type] if self.costs is None else self.costs.group
        padding = min(group_cost, token_budget // 8)
        groups = [
            [indices[place] for place in group]
            for indices in together.values()
            for group in cut_by_length([lengths[index] for index in indices], sys.maxsize, padding)
        ]
        starts = [row.starts for row in rows]
        line = Ragged([row.num_inputs for row in rows], groups, uploads, starts=starts)
        if self._base.device.type != "cpu":
            query = torch.empty(0, 1, self._base.shape.sites["decoder"].head_dim, dtype=self._base.model.dtype)
            line.prepare(unpadded=backend_for(self._base.device).attends_unpadded(query))
        return line


def _num_bytes(rows: Sequence[Row | Tree], *, in_line: bool) -> int:
    """At least what one forward of rows needs in lists of numbers, but for very uneven rows: twenty for each token.

    A branch of a tree needs one more for each token of its trunk; a target token that is taught needs two for each
    token that its teacher has kept, and four.
    """
    lengths = [sum(row.lengths) for row in rows]
    trunks = sum(len(row.starts) * row.starts[0] for row in rows if row.starts)
    num_tokens = sum(lengths) if in_line else len(rows) * (max(lengths) + 2 * WIDTH_MULTIPLE)
    taught = sum(len(teacher) * (teacher.num_kept + 2) for row in rows for teacher in row.teachers)
    return 160 * (num_tokens + len(rows) + 2 * TOKEN_MULTIPLE) + 8 * trunks + 16 * taught


def _one_group(inserts: Sequence[Insert], rows: Iterator[Sequence[Row | Tree]]) -> RowGroup:
    """The rows of all members, those of each under its insert."""
    pairs = [(index, row) for index, of_member in enumerate(rows) for row in of_member]
    return RowGroup(inserts, range(len(inserts)), pairs)
