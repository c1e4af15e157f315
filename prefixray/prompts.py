"""Prompts that several rows continue: run once, and seen by each of those rows.

Beams of a source share its prompt, and so do the references of a source in an evaluation, and in a step of training
where they meet. Rows that run in a line become trees. For others the keys and values of all but a prompt's last token
are recorded and put behind its trial's prefix, and a row then begins with that last token; in training these go
without, since there gradients pass through the prompt. Only decoder-only bases have such prompts.
"""

# B prompts, L layers, K key/value heads, S tokens of the longest prompt without its last, D head dim

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prefixray.attention import Binder, Insert
from prefixray.batching import cut_by_length, pad, row_lengths
from prefixray.rows import Row, Tree
from prefixray.speed import Lengths


@dataclass(frozen=True)
class Prompt:
    """Tokens under a trial's insert, all but the last of a row's prompt."""

    slot: int  # the place of the insert among all trials'
    ids: tuple[int, ...]  # with room for an infix
    infix_start: int


@dataclass(frozen=True)
class RowGroup:
    """Rows that are run together, each beside its insert's place."""

    inserts: Sequence[Insert]
    slots: Sequence[int]  # whose each insert is
    rows: Sequence[tuple[int, Row | Tree]]


def by_source(rows: Sequence[Row]) -> list[list[int]]:
    """The indices of the rows of each source."""
    groups: dict[tuple[tuple[int, ...], int, tuple[int, ...]], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault((row.ids[: row.num_prompt], row.infix_start, row.encoder_ids), []).append(index)
    return list(groups.values())


def trees(rows: Sequence[Row], longest: int, token_budget: int) -> list[Row | Tree]:
    """The rows, those that go on from the same prompt as trees.

    A tree is no longer than `longest`, or than twice its trunk where that is more, and within the budget.
    """
    single, shared = _by_prompt(rows)
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


def extended(
    binder: Binder, inserts: Sequence[Insert], prompts: Sequence[Prompt], *, pad_id: int, device: torch.device
) -> list[Insert]:
    """Of each prompt, its insert with the prompt's keys and values behind the prefix. Prompts are sorted by slot."""
    if not any(prompt.ids for prompt in prompts):
        return [inserts[prompt.slot] for prompt in prompts]
    slots = sorted({prompt.slot for prompt in prompts})
    ids, _ = pad([prompt.ids for prompt in prompts], pad_id)
    starts = [prompt.infix_start for prompt in prompts]
    places = [slots.index(prompt.slot) for prompt in prompts]
    with binder.bind([inserts[slot] for slot in slots], places, infix_starts=starts):
        recorded = binder.record_rows(ids.to(device))["decoder"]  # (B, 2, L, K, S, D)
    pairs = zip(prompts, recorded, strict=True)
    return [_continued(inserts[prompt.slot], prompt, own[..., : len(prompt.ids), :]) for prompt, own in pairs]


def _continued(insert: Insert, prompt: Prompt, own: Tensor) -> Insert:
    """What the tokens after a prompt look at, given the prompt's own keys and values (2, L, K, S, D)."""
    prefix = insert.prefixes.get("decoder")
    if prefix is None:
        whole = own
    elif insert.infix is None:
        whole = torch.cat([prefix.to(own.dtype), own], dim=3)
    else:
        cuts = (prompt.infix_start, prompt.infix_start + insert.infix_length)
        before, infix, after = own.tensor_split(cuts, dim=3)
        whole = torch.cat([before, infix + prefix.to(own.dtype), after], dim=3)
    return Insert({"decoder": whole}, insert.functions)


def row_groups(
    binder: Binder,
    inserts: Sequence[Insert],
    rows: Sequence[Sequence[Row]],
    *,
    pad_id: int,
    token_budget: int,
    device: torch.device,
) -> Iterator[RowGroup]:
    """All rows of all trials, each prompt that several rows of a trial continue run once.

    First come the rows with a prompt of their own; then prompts by length, as many at once as their keys and values,
    the prefixes' included, fit the budget.
    """
    continued: dict[Prompt, list[Row]] = {}
    alone: list[tuple[int, Row]] = []
    for slot, own in enumerate(rows):
        roomy = [row.with_room(inserts[slot].infix_length, pad_id) for row in own]
        single, shared = _by_prompt(roomy)
        alone += ((slot, row) for row in single)
        continued |= {Prompt(slot, *prompt): some for prompt, some in shared.items()}
    if alone:
        yield RowGroup(inserts, range(len(inserts)), alone)
    prompts = list(continued)
    lengths = [(0, inserts[prompt.slot].num_positions() + len(prompt.ids)) for prompt in prompts]
    for piece in cut_by_length(lengths, token_budget, token_budget):
        some = sorted((prompts[i] for i in piece), key=lambda prompt: prompt.slot)
        pairs = [(place, row) for place, prompt in enumerate(some) for row in continued[prompt]]
        longer = extended(binder, inserts, some, pad_id=pad_id, device=device)
        yield RowGroup(longer, [prompt.slot for prompt in some], pairs)


def lengths_run(rows: Sequence[Row]) -> Lengths:
    """How long rows are on average where shared prompts are run once, as they nearly are in an evaluation."""
    single, shared = _by_prompt(rows)
    whole = row_lengths([*single, *(row for some in shared.values() for row in some)])
    return replace(whole, decoder=whole.decoder + sum(len(ids) for ids, _ in shared) / max(1, len(rows)))


def _by_prompt(rows: Sequence[Row]) -> tuple[list[Row], dict[tuple[tuple[int, ...], int], list[Row]]]:
    """Rows that are run whole; and what is left of those that share all but their prompt's last token.

    The latter by the shared ids and the column where an infix starts in them.
    """
    single: list[Row] = []
    shared: dict[tuple[tuple[int, ...], int], list[Row]] = {}
    for indices in by_source(rows):
        some = [rows[index] for index in indices]
        prompt = some[0].ids[: some[0].num_prompt]
        if len(some) == 1 or len(prompt) == 1 or some[0].encoder_ids:
            single += some
        else:
            shared[prompt[:-1], some[0].infix_start] = [Row(row.ids[len(prompt) - 1 :], 1) for row in some]
    return single, shared
