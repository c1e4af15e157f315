"""Tokenised examples: a row for each, and trees of rows that share their prompt."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from prefixray.data.teacher import Teacher

T = TypeVar("T")

LEAST_SAMPLED = 8


@dataclass(frozen=True)
class Row:
    """One tokenised example."""

    ids: tuple[int, ...]  # the decoder's: its prompt and the target
    num_prompt: int  # ids of the decoder's prompt
    encoder_ids: tuple[int, ...] = ()  # the encoder's: the source; empty for a decoder-only model
    num_after: int = 1  # tokens of the prompt behind its source: the separator, and room for an infix before it
    number: int = 0  # in its step, where rows draw numbers of their own
    teacher: Teacher | None = field(default=None, compare=False, repr=False)  # of the target's tokens

    @property
    def num_inputs(self) -> int:
        """Tokens that go into the decoder: all but the last."""
        return len(self.ids) - 1

    @property
    def num_targets(self) -> int:
        """Tokens that the loss is taken over."""
        return len(self.ids) - self.num_prompt

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens that go into the encoder and into the decoder."""
        return len(self.encoder_ids), self.num_inputs

    @property
    def inputs(self) -> tuple[int, ...]:
        """Ids that go into the decoder."""
        return self.ids[:-1]

    @property
    def positions(self) -> Sequence[int]:
        """The position of each of these ids, counted from the row's first token."""
        return range(self.num_inputs)

    @property
    def starts(self) -> Sequence[int]:
        """Columns where branches begin; see `Tree`."""
        return ()

    @property
    def targets(self) -> Sequence[tuple[int, int]]:
        """Each target token: the column that predicts it, and its id."""
        return list(zip(range(self.num_prompt - 1, self.num_inputs), self.ids[self.num_prompt :], strict=True))

    @property
    def teachers(self) -> Sequence[Teacher]:
        """The teacher of the target tokens, where they have one."""
        return () if self.teacher is None else (self.teacher,)

    @property
    def infix_start(self) -> int:
        """The column behind the source, where an infix starts."""
        return self.num_prompt - self.num_after

    def with_room(self, num_positions: int, fill: int) -> "Row":
        """The row with this many columns behind its source, for an infix, which hold the id `fill`."""
        if num_positions == 0:
            return self
        ids = make_room(self.ids, self.infix_start, num_positions, fill)
        num_prompt, num_after = self.num_prompt + num_positions, self.num_after + num_positions
        return replace(self, ids=ids, num_prompt=num_prompt, num_after=num_after)


@dataclass(frozen=True)
class Tree:
    """Rows of a decoder-only model that share their prompt, which runs once.

    The trunk is the prompt without its last token; a branch is the rest of a row, from that token on. Tokens of a
    branch look at the trunk and at their own branch, and their positions count on from the trunk's end.
    """

    trunk: tuple[int, ...]
    branches: tuple[Row, ...]  # whose prompt is one token

    @property
    def num_inputs(self) -> int:
        """Tokens that go into the decoder."""
        return len(self.trunk) + sum(branch.num_inputs for branch in self.branches)

    @property
    def num_targets(self) -> int:
        """Tokens that the loss is taken over."""
        return sum(branch.num_targets for branch in self.branches)

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens that go into the encoder and into the decoder."""
        return 0, self.num_inputs

    @property
    def inputs(self) -> tuple[int, ...]:
        """Ids that go into the decoder."""
        return (*self.trunk, *(token for branch in self.branches for token in branch.inputs))

    @property
    def positions(self) -> Sequence[int]:
        """The position of each of these ids, counted from the prompt's first token."""
        trunk = len(self.trunk)
        return [*range(trunk), *(trunk + position for branch in self.branches for position in branch.positions)]

    @property
    def starts(self) -> Sequence[int]:
        """Columns where branches begin."""
        lengths = [len(self.trunk), *(branch.num_inputs for branch in self.branches[:-1])]
        return list(itertools.accumulate(lengths))

    @property
    def targets(self) -> Sequence[tuple[int, int]]:
        """Each target token: the column that predicts it, and its id."""
        pairs = zip(self.starts, self.branches, strict=True)
        return [(start + column, token) for start, branch in pairs for column, token in branch.targets]

    @property
    def teachers(self) -> Sequence[Teacher]:
        """The teachers of the branches' target tokens, in their order."""
        return [teacher for branch in self.branches for teacher in branch.teachers]


def make_room(ids: Sequence[int], start: int, num_positions: int, fill: int) -> tuple[int, ...]:
    """Token ids with columns for an infix, which hold the id `fill`."""
    return (*ids[:start], *[fill] * num_positions, *ids[start:])


def sampled(rows: Sequence[T], share: float) -> list[T]:
    """This share of the rows, evenly spaced; at least 8, or all there are."""
    num = min(len(rows), max(LEAST_SAMPLED, math.ceil(share * len(rows))))
    return [rows[index * len(rows) // num] for index in range(num)]
