"""Prompts that several rows share, run once: their keys and values stand behind the prefix of their trial.

For a prompt all but its last token run. The rows then begin with that last token, and look at the prompt's keys and
values as they look at a prefix.
"""

# B prompts, L layers, K key/value heads, S tokens of the longest prompt without its last, C columns, D head dim

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefixray.batching.batches import pad
from prefixray.batching.lengths import cut_by_length
from prefixray.batching.rows import Row, Tree
from prefixray.batching.shared_prompts import by_prompt
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.insert import Insert


@dataclass(frozen=True)
class Prompt:
    """All but the last token of a prompt, under a trial's insert."""

    slot: int  # the index of the insert among all trials'
    ids: tuple[int, ...]  # with room for an infix
    infix_start: int


@dataclass(frozen=True)
class RowGroup:
    """Rows that are run together, each with the index of its insert."""

    inserts: Sequence[Insert]
    slots: Sequence[int]  # of each insert, the index of its trial
    rows: Sequence[tuple[int, Row | Tree]]


def extended(
    binder: Binder, inserts: Sequence[Insert], prompts: Sequence[Prompt], *, pad_id: int, device: torch.device
) -> list[Insert]:
    """The insert of each prompt, with the prompt's keys and values behind its prefix. Prompts are sorted by slot."""
    if not any(prompt.ids for prompt in prompts):
        return [inserts[prompt.slot] for prompt in prompts]
    slots = sorted({prompt.slot for prompt in prompts})
    ids, _ = pad([prompt.ids for prompt in prompts], pad_id)
    infix_starts = [prompt.infix_start for prompt in prompts]
    row_inserts = [slots.index(prompt.slot) for prompt in prompts]
    with binder.bind([inserts[slot] for slot in slots], row_inserts, infix_starts=infix_starts):
        recorded = binder.record_rows(ids.to(device))["decoder"]  # (B, 2, L, K, S, D)
    pairs = zip(prompts, recorded, strict=True)
    return [_continued(inserts[prompt.slot], prompt, kv[..., : len(prompt.ids), :]) for prompt, kv in pairs]


def prompt_columns(base: Base, pad_id: int, prompts: Sequence[tuple[Insert, Sequence[int], int]]) -> list[Tensor]:
    """All that the last token of each prompt looks back to: the prefix, and the tokens before; (2, L, K, C, D) each.

    Each prompt is an insert, token ids with room for an infix, and the infix' first column. The order of prompts is
    kept; those of one insert run side by side.
    """
    distinct = {id(insert): insert for insert, _, _ in prompts}
    slots = {key: slot for slot, key in enumerate(distinct)}
    order = sorted(range(len(prompts)), key=lambda index: slots[id(prompts[index][0])])
    asked = [Prompt(slots[id(insert)], tuple(ids[:-1]), start) for insert, ids, start in prompts]
    inserts = extended(
        Binder.of(base.model),
        list(distinct.values()),
        [asked[index] for index in order],
        pad_id=pad_id,
        device=base.device,
    )
    site = base.shape.sites["decoder"]
    size = (2, site.num_layers, site.num_kv_heads, 0, site.head_dim)
    nothing = torch.zeros(size, dtype=base.model.dtype, device=base.device)
    columns = [nothing] * len(prompts)
    for index, insert in zip(order, inserts, strict=True):
        columns[index] = insert.prefixes.get("decoder", nothing)
    return columns


def _continued(insert: Insert, prompt: Prompt, prompt_kv: Tensor) -> Insert:
    """The insert for tokens behind a prompt, given the prompt's keys and values (2, L, K, S, D)."""
    prefix = insert.prefixes.get("decoder")
    if prefix is None:
        kv = prompt_kv
    elif insert.infix is None:
        kv = torch.cat([prefix.to(prompt_kv.dtype), prompt_kv], dim=3)
    else:
        cuts = (prompt.infix_start, prompt.infix_start + insert.infix_length)
        before, infix, after = prompt_kv.tensor_split(cuts, dim=3)
        kv = torch.cat([before, infix + prefix.to(prompt_kv.dtype), after], dim=3)
    return Insert({"decoder": kv}, insert.functions)


def row_groups(
    binder: Binder,
    inserts: Sequence[Insert],
    rows: Sequence[Sequence[Row]],
    *,
    pad_id: int,
    token_budget: int,
    device: torch.device,
) -> Iterator[RowGroup]:
    """All rows of all trials; a prompt that several rows of a trial share runs once, when its group is asked for.

    First come the rows with a prompt of their own. Then come prompts by length, as many at once as their keys and
    values, the prefixes' included, fit the budget.
    """
    # A prompt is shared by rows of one trial alone, since its keys and values depend on the trial's prefix.
    rows_by_prompt: dict[Prompt, list[Row]] = {}
    alone: list[tuple[int, Row]] = []
    for slot, of_trial in enumerate(rows):
        roomy = [row.with_room(inserts[slot].infix_length, pad_id) for row in of_trial]
        single, shared = by_prompt(roomy)
        alone += ((slot, row) for row in single)
        rows_by_prompt |= {Prompt(slot, *prompt): rests for prompt, rests in shared.items()}
    if alone:
        yield RowGroup(inserts, range(len(inserts)), alone)

    # Each prompt has an insert of its own: prefix and prompt, to which the rests of its rows look back.
    prompts = list(rows_by_prompt)
    lengths = [(0, inserts[prompt.slot].num_positions() + len(prompt.ids)) for prompt in prompts]
    for piece in cut_by_length(lengths, token_budget, token_budget):
        together = sorted((prompts[index] for index in piece), key=lambda prompt: prompt.slot)
        rests = [(index, row) for index, prompt in enumerate(together) for row in rows_by_prompt[prompt]]
        longer = extended(binder, inserts, together, pad_id=pad_id, device=device)
        yield RowGroup(longer, [prompt.slot for prompt in together], rests)
