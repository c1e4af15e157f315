"""Keys and values of prompts that several rows share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefixray.batching.batches import pad
from prefixray.batching.lengths import cut_by_length
from prefixray.batching.rows import Row, Tree
from prefixray.batching.shared_prompts import by_prompt
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.insert import Insert


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
        single, shared = by_prompt(roomy)
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
