"""How long rows are, and micro-batches of rows of like length."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from prefixray.batching.rows import Row


@dataclass(frozen=True)
class Lengths:
    """Tokens of an example, on average."""

    encoder: float  # into the encoder; 0 for a decoder-only base
    decoder: float  # into the decoder: source and target, or the target alone
    targets: float  # over which the loss is taken

    @property
    def source(self) -> float:
        """Tokens of the source, with the special ones around it."""
        return self.encoder or self.decoder - self.targets + 1


def mean_lengths(lengths: Sequence[tuple[int, int]], targets: Sequence[int]) -> Lengths:
    """The average of rows whose encoder and decoder inputs are `lengths`."""
    count = max(1, len(targets))
    encoder, decoder = (sum(row[side] for row in lengths) / count for side in (0, 1))
    return Lengths(encoder, decoder, sum(targets) / count)


def row_lengths(rows: Sequence[Row]) -> Lengths:
    """How long these rows are on average."""
    return mean_lengths([row.lengths for row in rows], [row.num_targets for row in rows])


def cut_by_length(lengths: Sequence[tuple[int, int]], token_budget: int, piece_cost: int) -> list[list[int]]:
    """Indices of rows, sorted by encoder and decoder length and cut into pieces of like length.

    A piece ends where its padded tokens would exceed the budget, or where its padding would exceed `piece_cost`: the
    number of tokens that run in the time that one more piece takes by itself. A piece has at least one row.
    """
    pieces: list[list[int]] = []
    longest, num_tokens = (0, 0), 0  # of the last piece
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i][0], -lengths[i][1], i)):
        length = lengths[index]
        longest_with = max(longest[0], length[0]), max(longest[1], length[1])
        padded = (len(pieces[-1]) + 1) * max(1, sum(longest_with)) if pieces else 0
        if pieces and padded <= token_budget and padded - num_tokens - sum(length) <= piece_cost:
            pieces[-1].append(index)
            longest, num_tokens = longest_with, num_tokens + sum(length)
        else:
            pieces.append([index])
            longest, num_tokens = length, sum(length)
    return pieces


def cut_evenly(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices of rows, sorted by length and cut into few pieces of about as many tokens.

    A piece is within the budget, or has one row.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    ends = itertools.accumulate(lengths[i] for i in order)
    middles = [end - lengths[i] / 2 for i, end in zip(order, ends, strict=True)]
    for count in itertools.count(math.ceil(sum(lengths) / token_budget)):
        share = sum(lengths) / count
        pieces: dict[int, list[int]] = {}
        for index, middle in zip(order, middles, strict=True):
            pieces.setdefault(int(middle / share), []).append(index)
        if all(len(piece) == 1 or sum(lengths[i] for i in piece) <= token_budget for piece in pieces.values()):
            return list(pieces.values())
    raise AssertionError("pieces become single rows")
