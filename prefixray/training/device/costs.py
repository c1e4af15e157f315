"""How a GPU's rows are cut, from the width of the base and two measured steps.

A small step takes as long as its launches, a large one as long as its work. So the time of the small one, in tokens of
the large one, is what one more micro-batch costs. What the large step holds more than the small one is what its tokens
hold. All numbers of tokens are powers of two: noise in the times seldom changes them, and what they decide, the cut
into micro-batches, has to be the same again when a sweep is repeated.
"""

import math
from dataclasses import dataclass

FULL = 8  # times as long as its launches a step works, where larger micro-batches gain nothing that counts
TOKEN_BUDGETS = (256, 1 << 16)  # the least and the most
PIECE_COSTS = (64, 1 << 16)
STEP_SHARE = 0.4  # of the free memory, that the tokens of a step take at the most; the rest is for trials
GROUP_WIDTH = 800  # width of a base at which one more group costs as many tokens that attend as one more piece costs
"""Modelled. In a block, a group has 11 of 59 launches, as counted on a pretended GPU. A token that attends moves 40
bytes for each unit of the width, at 3.0 TB/s. The whole of a token takes 48 FLOPs for each unit squared, at 553
TFLOP/s.
"""


@dataclass(frozen=True)
class MeasuredStep:
    """A step of one small trial."""

    tokens: int
    seconds: float
    num_bytes: int  # at its peak, more than before it


@dataclass(frozen=True)
class Costs:
    """What decides how a pack's rows are cut, in tokens, and how many trials have room beside them."""

    token_budget: int  # of a micro-batch, padding included
    piece: int  # that could be run in the time one more micro-batch takes by itself
    group: int  # that could attend in the time one more group of a line takes by itself
    step_bytes: int  # what such a micro-batch holds until its backward has run


def costs_of(small: MeasuredStep, large: MeasuredStep, *, width: int, free_bytes: float) -> Costs:
    """The costs on a device with so much memory free, for a base of this width."""
    more = large.tokens - small.tokens
    assert more > 0, "the large step has more tokens"
    token_bytes = max(1.0, (large.num_bytes - small.num_bytes) / more)
    token_seconds = (large.seconds - small.seconds) / more
    piece = small.seconds / token_seconds if token_seconds > 0 else math.inf
    fits = STEP_SHARE * free_bytes / token_bytes
    budget = _power_below(min(FULL * piece, fits), TOKEN_BUDGETS)
    step_bytes = round(small.num_bytes + budget * token_bytes)
    return Costs(
        budget, _power_below(piece, PIECE_COSTS), _power_below(piece * width / GROUP_WIDTH, PIECE_COSTS), step_bytes
    )


def _power_below(count: float, limits: tuple[int, int]) -> int:
    """The largest power of two that is not larger, within limits that are powers of two themselves."""
    least, most = limits
    return int(most if count >= most else least if count <= least else 2 ** int(math.log2(count)))
