"""The state of one binding: which trial each row belongs to, and what its attention and its hooks look up."""

# B rows, T trials, H query heads, K key/value heads, S tokens, S' keys, P prefix positions, D head dim

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from prefixray.model.backend import backend_for
from prefixray.model.binding.infix import Infixes
from prefixray.model.binding.insert import Insert, RowFunction, SitePrefix, Slot, StackedRows
from prefixray.model.binding.ragged import Ragged
from prefixray.model.dropout.row_dropout import RowDropout
from prefixray.model.last_ffn import Targets
from prefixray.model.plain import LinePrefix


class StepCache(Protocol):
    """The keys and values that the rows of a decoding step look at, each row one token."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Write a step's keys and values, (B, K, 1, D), and attend from its queries (B, H, 1, D): (B, 1, H, D)."""


@dataclass
class AttendingRows:
    """Rows that attend together, and the prefixes they see."""

    row_trial: Tensor  # (B,)
    sites: Mapping[str, SitePrefix]  # the sites where a trial has a prefix
    infixes: Infixes | None = None  # None where no row has an infix
    is_even: bool = False  # the rows are as many of trial 0, then as many of trial 1, ...
    has_long_prefix: bool = False  # all rows belong to one trial, whose prefix is worth attention of its own
    numbers: Tensor | None = None  # (B,) of the rows in their step, where the model's own dropout is drawn by row
    dropout: RowDropout | None = None
    masks: dict[str, tuple[Tensor, Tensor | None, Tensor]] = field(default_factory=dict)
    """By site: this forward's mask, its position bias, and what `mask` made of both."""

    def row_trials(self, num_rows: int) -> Tensor:
        """The trial of each row, (num_rows,); beam search repeats rows in place."""
        repeats = num_rows // self.row_trial.shape[0]
        return self.row_trial if repeats == 1 else self.row_trial.repeat_interleave(repeats)

    def mask(self, site: str, attention_mask: Tensor, query: Tensor, bias: Tensor | None) -> Tensor:
        """The mask that is added to scores, prefix first: (B, 1 or H, S, P + S'), -inf where a query may not look.

        `attention_mask` is the model's own, (B, 1, S, S'), True where a query may look. `bias` is T5's for the tokens'
        distance, (1, H, S, S'); to a prefix there is no distance. A mask is made once for all layers of a site; where
        its rows lie in memory is the backend's `mask_multiple`.
        """
        known = self.masks.get(site)
        if known is not None and known[0] is attention_mask and known[1] is bias and known[2].dtype == query.dtype:
            return known[2]
        num_rows, _, num_queries, _ = query.shape
        allowed = attention_mask.expand(num_rows, 1, num_queries, -1)
        if site in self.sites:
            allowed = self._with_prefix(self.sites[site], allowed)
        num_keys, multiple = allowed.shape[3], backend_for(query.device).mask_multiple
        fillers = -num_keys % multiple
        size = (*allowed.shape[:3], num_keys + fillers)
        mask = torch.zeros(size, dtype=query.dtype, device=allowed.device)
        mask[..., :num_keys].masked_fill_(~allowed, float("-inf"))
        if bias is not None:
            # T5's bias lies with its heads last, and the sum would, too.
            mask = mask + functional.pad(bias.contiguous(), (num_keys - bias.shape[3], fillers))
        mask = mask[..., :num_keys]
        if not mask.requires_grad:  # a trained bias may be seen by one checkpointed block alone
            self.masks[site] = (attention_mask, bias, mask)
        return mask

    def _with_prefix(self, prefix: SitePrefix, allowed: Tensor) -> Tensor:
        """(B, 1, S, S') -> (B, 1, S, P + S'): each row also sees the positions of its own trial's prefix."""
        num_rows, _, num_queries, num_keys = allowed.shape
        columns = torch.arange(prefix.layers[0].shape[3], device=allowed.device)
        seen = columns < prefix.lengths[self.row_trials(num_rows)][:, None]  # (B, P)
        seen = seen[:, None, None].expand(-1, 1, num_queries, -1)
        if self.infixes is not None:  # tokens behind an infix see the prefix, and the infix itself sees its columns
            behind = self.infixes.behind(num_queries)[:, None, :, None]
            seen = seen & behind
            allowed = allowed & ~(behind & self.infixes.inside(num_keys)[:, None, None])
        return torch.cat([seen, allowed], dim=3)


@dataclass(frozen=True)
class Segment:
    """Neighbouring rows whose modules' outputs go through the same functions."""

    functions: Mapping[str, RowFunction | Slot]
    start: int  # a row, or in a line a token
    end: int


@dataclass
class Bound:
    """What is bound to the rows of a model's forwards."""

    rows: AttendingRows
    segments: Sequence[Segment]
    shifts: Tensor | None = None
    """(T,), of ragged rows (1, N): prefix positions before a row's first token; None where there are none."""
    targets: Targets | None = None  # the positions that the head runs on; None: all
    cache: StepCache | None = None  # whose columns the rows see, each row one token
    ragged: Ragged | None = None  # the rows stand one behind another
    make_groups: Callable[[], Sequence[AttendingRows]] = tuple  # of the ragged rows
    make_prefixes: Callable[[], Sequence[LinePrefix | None] | None] = lambda: None  # of each layer, for ragged rows
    is_headless: bool = False
    hidden: Tensor | None = None
    """After a headless forward: the head's input at the targets, (N, width)."""
    stacked_rows: dict[tuple[bool, tuple[tuple[int, int, int], ...]], StackedRows] = field(default_factory=dict)
    """Of trials that share updates: by whether these are gated, and each trial's number in the update, its first row
    and the row after its last."""

    @cached_property
    def groups(self) -> Sequence[AttendingRows]:
        """Of the ragged rows, those that attend together where they are padded; made when first asked for."""
        return self.make_groups()

    @cached_property
    def line_prefixes(self) -> Sequence[LinePrefix | None] | None:
        """What the ragged rows see of their prefixes in each layer where they attend without padding.

        None: they cannot, since some trials have prefixes and others have none.
        """
        return self.make_prefixes()

    def has_functions(self, name: str | None = None) -> bool:
        """Whether rows have functions: on the module called `name`, or on any."""
        return any(name in segment.functions if name else segment.functions for segment in self.segments)


def cut_segments(inserts: Sequence[Insert], row_trial: Sequence[int], edges: Sequence[int]) -> list[Segment]:
    """The rows in runs with the same functions; row r lies from `edges[r]` to `edges[r + 1]`."""
    trials = list(dict.fromkeys(row_trial))
    assert sorted(row_trial, key=trials.index) == list(row_trial), "rows of one trial must stand together"
    segments: list[Segment] = []
    for row, trial in enumerate(row_trial):
        functions = inserts[trial].functions
        if segments and segments[-1].functions is functions:
            segments[-1] = Segment(functions, segments[-1].start, edges[row + 1])
        else:
            segments.append(Segment(functions, edges[row], edges[row + 1]))
    return segments


def is_even(row_trial: Sequence[int], num_trials: int) -> bool:
    """Whether every trial has as many rows, in the order of the trials."""
    repeats = len(row_trial) // num_trials
    return list(row_trial) == [trial for trial in range(num_trials) for _ in range(repeats)]
