"""Prompts that several rows of a decoder-only base share: such a prompt runs once for all of them.

Beams of a source share its prompt. References of a source do, in an evaluation and where they meet in a step of
training. Rows that run in a line become a tree. For other rows `training/prefill.py` records the prompt's keys and
values and puts them behind the trial's prefix; not in training, where gradients pass through the prompt.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

from prefixray.batching.lengths import Lengths, row_lengths
from prefixray.batching.rows import Row, Tree


def trees(rows: Sequence[Row], longest: int, token_budget: int) -> list[Row | Tree]:
    """The rows; those that share a prompt as trees.

    A tree is no longer than `longest`, or than twice its trunk where that is more. It is within the budget.
    """
    single, shared = by_prompt(rows)
    rows_and_trees: list[Row | Tree] = [*single]
    for (trunk, _), branches in shared.items():
        limit, length = min(token_budget, max(longest, 2 * len(trunk))), sys.maxsize
        parts: list[list[Row]] = []
        for branch in branches:
            length += branch.num_inputs
            if length > limit:
                parts.append([])
                length = len(trunk) + branch.num_inputs
            parts[-1].append(branch)
        rows_and_trees += (_joined(trunk, part[0]) if len(part) == 1 else Tree(trunk, tuple(part)) for part in parts)
    return rows_and_trees


def _joined(trunk: tuple[int, ...], branch: Row) -> Row:
    return replace(branch, ids=(*trunk, *branch.ids), num_prompt=len(trunk) + branch.num_prompt)


def by_prompt(rows: Sequence[Row]) -> tuple[list[Row], dict[tuple[tuple[int, ...], int], list[Row]]]:
    """Rows that are run whole, and the rests of those that share all but their prompt's last token.

    The rests are keyed by the shared ids and the column where an infix starts in them.
    """
    groups: dict[tuple[tuple[int, ...], int, tuple[int, ...]], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.ids[: row.num_prompt], row.infix_start, row.encoder_ids), []).append(row)
    single: list[Row] = []
    shared: dict[tuple[tuple[int, ...], int], list[Row]] = {}
    for (prompt, infix_start, encoder_ids), group in groups.items():
        if len(group) == 1 or len(prompt) == 1 or encoder_ids:
            single += group
        else:
            shared[prompt[:-1], infix_start] = [
                Row(row.ids[len(prompt) - 1 :], 1, teacher=row.teacher) for row in group
            ]
    return single, shared


def lengths_run(rows: Sequence[Row]) -> Lengths:
    """How long rows are on average where shared prompts run once, as they nearly do in an evaluation."""
    single, shared = by_prompt(rows)
    without_shared = row_lengths([*single, *(rest for rests in shared.values() for rest in rests)])
    num_shared = sum(len(ids) for ids, _ in shared)
    return replace(without_shared, decoder=without_shared.decoder + num_shared / max(1, len(rows)))
