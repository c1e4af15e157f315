"""Prompts that several rows continue: run once, and seen by each of those rows.

Beams of a source share its prompt, and so do the references of a source in an evaluation, and in a step of training
where they meet. Rows that run in a line become trees. For others the keys and values of all but a prompt's last token
are recorded and put behind its trial's prefix, and a row then begins with that last token; in training these go
without, since there gradients pass through the prompt. Only decoder-only bases have such prompts.
"""

# B prompts, L layers, K key/value heads, S tokens of the longest prompt without its last, D head dim

import sys
from collections.abc import Sequence
from dataclasses import replace

from prefixray.batching.lengths import Lengths, row_lengths
from prefixray.batching.rows import Row, Tree


def trees(rows: Sequence[Row], longest: int, token_budget: int) -> list[Row | Tree]:
    """The rows, those that go on from the same prompt as trees.

    A tree is no longer than `longest`, or than twice its trunk where that is more, and within the budget.
    """
    single, shared = by_prompt(rows)
    found: list[Row | Tree] = [*single]
    for (trunk, _), branches in shared.items():
        limit, length = min(token_budget, max(longest, 2 * len(trunk))), sys.maxsize
        parts: list[list[Row]] = []
        for branch in branches:
            length += branch.num_inputs
            if length > limit:
                parts.append([])
                length = len(trunk) + branch.num_inputs
            parts[-1].append(branch)
        found += (_whole(trunk, part[0]) if len(part) == 1 else Tree(trunk, tuple(part)) for part in parts)
    return found


def _whole(trunk: tuple[int, ...], branch: Row) -> Row:
    return Row((*trunk, *branch.ids), len(trunk) + branch.num_prompt)


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
            shared[prompt[:-1], infix_start] = [Row(row.ids[len(prompt) - 1 :], 1) for row in group]
    return single, shared


def lengths_run(rows: Sequence[Row]) -> Lengths:
    """How long rows are on average where shared prompts are run once, as they nearly are in an evaluation."""
    single, shared = by_prompt(rows)
    whole = row_lengths([*single, *(row for some in shared.values() for row in some)])
    return replace(whole, decoder=whole.decoder + sum(len(ids) for ids, _ in shared) / max(1, len(rows)))
