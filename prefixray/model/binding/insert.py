"""What one trial puts into the model, and the prefixes of several trials as tensors."""

# T trials, L layers of a site, K key/value heads, P prefix positions, D head dim
# B rows, R places for rows of a trial, S tokens, W width, N tokens of a line

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

RowFunction = Callable[[Tensor, Tensor], Tensor]  # (input of the module, output of the module) -> new output


@dataclass(frozen=True)
class LineTokens:
    """Which of the trials that share an update the tokens of a line belong to."""

    trials: Tensor  # (N,) as the update numbers them; their number where a token's trial does not share the update
    positions: Tensor  # (N,) the token's position in its row, and its trial's number times `num_positions`
    num_positions: int  # of the longest row
    gates: list[Tensor] = field(default_factory=list)
    """What the update has made of the trials, once for all modules: see there."""


@dataclass(frozen=True)
class StackedRows:
    """Where the rows of trials that share an update stand among a forward's B rows: R places for each trial.

    In a line each of the N tokens counts as a row of one token.
    """

    indices: Sequence[int]  # (T,) the trials with rows, as the update numbers them
    chosen: Tensor | None  # the same as a tensor; None: all trials of the update
    num_places: int  # R, the most rows of a trial
    sources: Tensor | None  # (T * R,) the row at each place, a trial's first where it has fewer; None: all, in order
    rows: Tensor | None = None  # (n,) the trials' rows
    places: Tensor | None = None  # (n,) the place of each of them
    line: LineTokens | None = None  # None: rows stand side by side

    def of(self, stacked: Tensor) -> Tensor:
        """The part of a tensor of all trials of the update, (trials, ...) -> (T, ...)."""
        return stacked if self.chosen is None else stacked.index_select(0, self.chosen)

    def take(self, x: Tensor) -> Tensor:
        """(B, S, W) -> (T, R, S, W); where a trial has fewer rows, with one of its own, that `add` leaves out."""
        size = (len(self.indices), self.num_places, *x.shape[1:])
        return (x if self.sources is None else x.index_select(0, self.sources)).reshape(size)

    def add(self, output: Tensor, update: Tensor) -> Tensor:
        """The output, (B, S, W), with the update of the trials' rows, (T, R, S, W)."""
        update = update.to(output.dtype)
        if self.rows is None or self.places is None:
            return output + update.view_as(output)
        return output.index_add(0, self.rows, update.flatten(0, 1).index_select(0, self.places))


class SharedUpdate(Protocol):
    """What several trials add to the output of a module, each on its own rows, by products that they share."""

    @property
    def num_trials(self) -> int:
        """How many trials share it."""

    @property
    def is_gated(self) -> bool:
        """Whether in a line all tokens go through the tensors of all trials, so that places of trials are not made."""

    def __call__(self, given: Tensor, output: Tensor, rows: StackedRows) -> Tensor:
        """The module's output, (B, S, out), with what the trials with rows add, given its input, (B, S, in)."""


@dataclass(frozen=True)
class Slot:
    """A trial's place in an update that it shares with others."""

    shared: SharedUpdate
    index: int


@dataclass(frozen=True)
class Insert:
    """Prefixes, or functions on the outputs of named modules, or nothing."""

    prefixes: Mapping[str, Tensor] = field(default_factory=dict)  # site -> (2, L, K, P, D): keys, values of each layer
    functions: Mapping[str, RowFunction | Slot] = field(default_factory=dict)
    infix: Tensor | None = None  # (P, width): virtual embeddings inside the row, to whose K/V the prefix is added

    def num_seen(self, site: str) -> int:
        """How many positions of the prefix rows see at a site, wherever these stand."""
        return self.prefixes[site].shape[3] if site in self.prefixes else 0

    def num_positions(self, site: str = "decoder") -> int:
        """How many prefix positions come before the row's first token at a site."""
        return self.num_seen(site) if self.infix is None else 0

    @property
    def fits_lines(self) -> bool:
        """Whether its rows may stand in a line: without infixes, and without functions of a trial alone."""
        return self.infix is None and all(isinstance(function, Slot) for function in self.functions.values())

    @property
    def infix_length(self) -> int:
        """How many columns of a row the infix takes."""
        return 0 if self.infix is None else self.infix.shape[0]


@dataclass(frozen=True)
class SitePrefix:
    """The prefixes of several trials at one site."""

    lengths: Tensor  # (T,) prefix positions of each trial
    layers: tuple[Tensor, ...]  # per layer (T, 2, K, P, D), padded on the right of P


def stack_prefixes(
    inserts: Sequence[Insert], *, dtype: torch.dtype, put: Callable[[Tensor], Tensor]
) -> dict[str, SitePrefix]:
    """The prefixes of trials, by site; a site where no trial has a prefix is left out.

    `put` moves small tensors to the device.
    """
    stacked = {}
    for site in dict.fromkeys(site for insert in inserts for site in insert.prefixes):
        lengths = [insert.num_seen(site) for insert in inserts]
        if max(lengths) > 0:
            stacked[site] = SitePrefix(put(torch.tensor(lengths)), _layers(inserts, site, dtype))
    return stacked


def prefixes_in_line(inserts: Sequence[Insert], site: str, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of all trials' prefixes at a site, one behind another: (P of all, K, D) each, by layer.

    One `unbind` makes all of them, for the reason that `_layers` gives. Positions come first, as where prefixes are
    trained: so a trial's gradient is a part of all gradients, and nobody copies it.
    """
    joined = torch.cat([insert.prefixes[site].permute(3, 1, 0, 2, 4) for insert in inserts]).to(dtype)
    keys_and_values = joined.flatten(1, 2).unbind(1)  # of (P of all, L * 2, K, D)
    return list(zip(keys_and_values[::2], keys_and_values[1::2], strict=True))


def _layers(inserts: Sequence[Insert], site: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """All trials' prefixes of a site, zeros behind a shorter one, layer by layer: (T, 2, K, P, D).

    One `unbind` makes the layers: the gradient of a slice per layer would be as large as all layers, each time.
    """
    longest = max(insert.num_seen(site) for insert in inserts)
    example = next(insert.prefixes[site] for insert in inserts if site in insert.prefixes)
    empty = example.new_zeros(example.shape).narrow(3, 0, 0)
    prefixes = [insert.prefixes.get(site, empty).to(dtype) for insert in inserts]
    missing = [longest - prefix.shape[3] for prefix in prefixes]
    padded = [functional.pad(p, (0, 0, 0, n)) if n else p for p, n in zip(prefixes, missing, strict=True)]
    return (torch.stack(padded) if len(padded) > 1 else padded[0][None]).unbind(2)
