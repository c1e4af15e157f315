"""The keys and values of rows that join and leave at any token.

Each row has a seat: its prefix, its prompt, and behind them a column for every token that it has written. Rows have
different lengths, and a mask hides what stands behind a row's own. The seats that are taken come first: where a row
leaves, the last row takes its seat, so that a step runs over no empty seat.
"""

# R rows, L layers, H query heads, K key/value heads, G = H / K, C columns, D head dim

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from prefixray.model.base import Base

_COLUMNS = 64  # at a time, by which the table grows


class SeatTable:
    """The columns of the rows of one batch."""

    def __init__(self, base: Base) -> None:
        site = base.shape.sites["decoder"]
        self._sizes = site.num_layers, site.num_kv_heads, site.head_dim
        self._device, self._dtype = base.device, base.model.dtype
        self.lengths: list[int] = []
        """Columns of each row."""
        self._columns = self._empty(0, 0)  # (2, L, seats, K, C, D)
        self._positions = self._mask = torch.empty(0)  # of this step: (R,) and (R * K, 1, C)

    def join(self, prompts: Sequence[Tensor]) -> None:
        """Seat rows behind those that are there; of each, the columns before its next token, (2, L, K, C, D)."""
        if not self.lengths:
            self._columns = self._empty(0, 0)  # what the earlier rows needed is given back
        self._make_room(len(self.lengths) + len(prompts), max(prompt.shape[3] for prompt in prompts))
        for prompt in prompts:
            self._columns[:, :, len(self.lengths), :, : prompt.shape[3]] = prompt
            self.lengths.append(prompt.shape[3])

    def leave(self, row: int) -> None:
        """Free a row's seat; the last row takes it, and so gets this row's number."""
        last = self.lengths.pop()
        if row < len(self.lengths):
            self._columns[:, :, row, :, :last] = self._columns[:, :, len(self.lengths), :, :last]
            self.lengths[row] = last

    def begin_step(self) -> Tensor:
        """Make room for one more token of each row; the positions of these tokens, (R, 1)."""
        self._positions = torch.tensor(self.lengths, device=self._device)
        self.lengths = [length + 1 for length in self.lengths]
        num_columns = max(self.lengths)
        self._make_room(len(self.lengths), num_columns)
        hidden = torch.arange(num_columns, device=self._device) > self._positions[:, None]
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device).masked_fill_(hidden, float("-inf"))
        self._mask = mask.repeat_interleave(self._sizes[1], dim=0)[:, None]
        return self._positions[:, None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Write a step's keys and values, (R, K, 1, D), and attend from its queries (R, H, 1, D): (R, 1, H, D)."""
        num_rows, num_heads, _, dim = query.shape
        num_kv, num_columns = key.shape[1], self._mask.shape[2]
        keys, values = self._columns[:, layer, :num_rows, :, :num_columns].unbind(0)  # (R, K, C, D)
        rows = torch.arange(num_rows, device=self._device)
        keys[rows, :, self._positions] = key[:, :, 0]
        values[rows, :, self._positions] = value[:, :, 0]
        queries = query.reshape(num_rows * num_kv, num_heads // num_kv, dim)  # (R * K, G, D)
        scores = torch.baddbmm(self._mask, queries, keys.flatten(0, 1).transpose(1, 2), alpha=scaling or dim**-0.5)
        weights = torch.softmax(scores, dim=2, dtype=torch.promote_types(scores.dtype, torch.float32))
        output = torch.bmm(weights.to(values.dtype), values.flatten(0, 1))  # (R * K, G, D)
        return output.view(num_rows, 1, num_heads, dim)

    def _make_room(self, num_rows: int, num_columns: int) -> None:
        """Let the table have as many seats and columns."""
        seats, columns = self._columns.shape[2], self._columns.shape[4]
        if num_rows <= seats and num_columns <= columns:
            return
        more_seats, more_columns = max(0, num_rows - seats), max(0, num_columns - columns)
        more_columns = -(-more_columns // _COLUMNS) * _COLUMNS
        self._columns = functional.pad(self._columns, (0, 0, 0, more_columns, 0, 0, 0, more_seats))

    def _empty(self, num_seats: int, num_columns: int) -> Tensor:
        """Zeros: columns not written yet get a weight of 0, and so must be finite."""
        layers, heads, dim = self._sizes
        return torch.zeros(2, layers, num_seats, heads, num_columns, dim, dtype=self._dtype, device=self._device)
