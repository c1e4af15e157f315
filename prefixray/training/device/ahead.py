"""The rows of a step as micro-batches, laid out while a GPU still works on the step before.

When the host has launched a step, it has nothing to do until the results arrive: it lays out the next step then. No
thread does it, since in Python a thread would take its time from launching. What a trial sees next is known, but not
whether it goes on: where other members step, or under another budget, the step is laid out when it comes.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from prefixray.batching.lessons import Taught, taught_tokens
from prefixray.batching.rows import Row
from prefixray.model.backend import backend_for
from prefixray.model.base import Base
from prefixray.model.binding.insert import Insert
from prefixray.training.base_checks import is_out_of_memory
from prefixray.training.device.costs import Costs
from prefixray.training.layout import Layout, MicroBatch
from prefixray.training.loss import Objective
from prefixray.training.member import Member, row_weight


@dataclass(frozen=True)
class How:
    """How rows are laid out."""

    token_budget: int
    train: bool
    draws: bool  # whether rows draw dropout by their numbers; they share no prompts then


class Laid(NamedTuple):
    """A micro-batch, and what its target tokens are for."""

    micro: MicroBatch
    objective: Objective | None  # None: nothing is trained
    taught: Taught | None  # those of members that distill

    def under(self, inserts: Sequence[Insert]) -> "Laid":
        """The same under these inserts of all of its group, or under none."""
        return self._replace(micro=replace(self.micro, inserts=[inserts[i] for i in self.micro.used if inserts]))


Key = tuple[tuple[tuple[Member, int], ...], How, Costs | None]  # members and their steps


class Ahead:
    """The micro-batches of members' rows, some of them laid out before they are asked for."""

    def __init__(self, base: Base, layout: Layout) -> None:
        self._device, self._layout = base.device, layout
        self._exact = torch.promote_types(base.model.dtype, torch.float32)
        self._kept: dict[Key, list[Laid]] = {}
        self._next: dict[Key, list[Laid]] = {}

    def begin_step(self) -> None:
        """From here on those are asked for that were laid out since the last call; all others go."""
        self._kept, self._next = self._next, {}

    def laid(
        self, members: Sequence[Member], rows: Sequence[Sequence[Row]], inserts: Sequence[Insert], how: How
    ) -> Iterable[Laid]:
        """The micro-batches of each member's rows under its insert."""
        known = self._kept.pop(self._key(members, how, 0), None) if how.train else None
        if known is None:
            return self._lay(members, rows, inserts, how, 0)
        return [one.under(inserts) for one in known]

    def lay_next(self, members: Sequence[Member], inserts: Sequence[Insert], how: How) -> None:
        """Lay out the step after this one, for which these inserts stand: those of the next are of the same sizes."""
        if not backend_for(self._device).lays_ahead:
            return
        rows = [member.next_rows(1) for member in members]
        try:
            laid = self._lay(members, rows, inserts, how, 1)
            # Without this step's inserts, whose prefixes and gradients would wait for the next step beside it.
            self._next[self._key(members, how, 1)] = [one.under(()) for one in laid]
        except RuntimeError as error:  # the step finds out for itself whether it has memory
            if not is_out_of_memory(error):
                raise

    def _key(self, members: Sequence[Member], how: How, ahead: int) -> Key:
        return tuple((member, member.step + ahead) for member in members), how, self._layout.costs

    def _lay(
        self,
        members: Sequence[Member],
        rows: Sequence[Sequence[Row]],
        inserts: Sequence[Insert],
        how: How,
        ahead: int,
    ) -> Iterator[Laid]:
        pairs = zip(members, rows, strict=True)
        weights = [row_weight(member.config, own) for member, own in pairs] if how.train else None
        if how.draws:
            rows = [_numbered(member, own, ahead) for member, own in zip(members, rows, strict=True)]
        cut = self._layout.micro_batches(
            members[0].binder, inserts, rows, token_budget=how.token_budget, train=how.train, whole=how.draws
        )
        for micro in cut:
            objective = None if weights is None else _objective(members, micro, weights, self._exact)
            yield Laid(micro, objective, _taught(members, micro, self._exact, train=how.train))


def _numbered(member: Member, rows: Sequence[Row], ahead: int) -> list[Row]:
    """The rows with the numbers by which they are dropped.

    Trials that share the base are told apart by hashes of 31 bits, since one seed holds for the whole forward.
    """
    numbers: Iterable[int] = range(len(rows))
    if member.drops_in_base:
        seed = member.dropout_seed + member.step + ahead
        numbers = (zlib.crc32(f"{seed}/{number}".encode()) >> 1 for number in numbers)
    return [replace(row, number=number) for row, number in zip(rows, numbers, strict=True)]


def _objective(members: Sequence[Member], micro: MicroBatch, weights: Sequence[float], exact: torch.dtype) -> Objective:
    """The weight and the label smoothing of each target token, given the weight of each member's rows."""
    per_row = [(weights[index], members[index].config.label_smoothing) for index in micro.row_members]
    per_token = torch.tensor(per_row, dtype=exact).repeat_interleave(torch.tensor(micro.num_targets), 0)  # (N, 2)
    of_weights, smoothing = micro.uploads.add(per_token.t().contiguous())
    return Objective(of_weights, smoothing, is_smoothed=any(share > 0 for _, share in per_row))


def _taught(members: Sequence[Member], micro: MicroBatch, exact: torch.dtype, *, train: bool) -> Taught | None:
    """What the target tokens of members that distill are taught: in training at their temperatures, else at 1."""
    configs = [members[index].config for index in micro.row_members]
    temperatures = [
        None if config.objective != "distill" else config.temperature if train else 1.0 for config in configs
    ]
    return taught_tokens(micro.rows, temperatures, dtype=exact, to=micro.uploads)
