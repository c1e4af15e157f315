"""Infixes (Li & Liang 2021, section 7.3): virtual positions inside a row, between its source and its target.

The base runs over source and virtual embeddings as over any text. The trial adds its own keys and values to those of
the virtual positions. The sums stand in front like a prefix, and only the target sees them: the virtual positions still
see one another without the additions.
"""

# B rows, T trials, S tokens, P infix positions, K key/value heads, D head dim

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Infixes:
    """Where the rows of a forward have their infixes; a row without an infix has an empty infix at column 0."""

    starts: Tensor  # (B,) the first column
    lengths: Tensor  # (B,)
    embeddings: Tensor  # (B, P, width), padded on the right of P

    def inside(self, num_columns: int) -> Tensor:
        """Which columns belong to the row's infix, (B, S)."""
        past_start = torch.arange(num_columns, device=self.starts.device) - self.starts[:, None]
        return (past_start >= 0) & (past_start < self.lengths[:, None])

    def behind(self, num_columns: int) -> Tensor:
        """Which columns come after the row's infix, (B, S)."""
        return torch.arange(num_columns, device=self.starts.device) >= (self.starts + self.lengths)[:, None]

    def embed(self, embedded: Tensor) -> Tensor:
        """The rows' embeddings (B, S, width), with the virtual embeddings in the infix' columns."""
        columns = torch.arange(embedded.shape[1], device=embedded.device) - self.starts[:, None]  # (B, S)
        index = columns.clamp(0, self.embeddings.shape[1] - 1)[..., None].expand_as(embedded)
        virtual = self.embeddings.to(embedded.dtype).gather(1, index)
        return torch.where(self.inside(embedded.shape[1])[..., None], virtual, embedded)

    def added(self, prefix: Tensor, own: Tensor) -> Tensor:
        """The sums of prefixes (B, K, P, D) and of the rows' own keys, or values, (B, K, S, D) at the infix."""
        positions = torch.arange(prefix.shape[2], device=prefix.device)
        index = (self.starts[:, None] + positions).clamp(max=own.shape[2] - 1)  # (B, P)
        at_infix = own.gather(2, index[:, None, :, None].expand_as(prefix))  # (B, K, P, D)
        outside = positions >= self.lengths[:, None]
        return prefix + at_infix.masked_fill(outside[:, None, :, None], 0.0)


def place_infixes(
    embeddings: Sequence[Tensor | None], row_trial: Sequence[int], starts: Sequence[int]
) -> Infixes | None:
    """The infixes of rows, given each trial's embeddings (P, width) or None; None where no trial has an infix."""
    example = next((infix for infix in embeddings if infix is not None), None)
    if example is None:
        return None
    assert len(starts) == len(row_trial), "each row says where its infix starts"
    parts = [example[:0] if infix is None else infix for infix in embeddings]
    lengths = [part.shape[0] for part in parts]
    padded = torch.stack([functional.pad(part, (0, 0, 0, max(lengths) - part.shape[0])) for part in parts])
    first_columns = [start if lengths[trial] else 0 for start, trial in zip(starts, row_trial, strict=True)]
    return Infixes(
        starts=torch.tensor(first_columns, device=example.device),
        lengths=torch.tensor([lengths[trial] for trial in row_trial], device=example.device),
        embeddings=padded[torch.tensor(row_trial, device=example.device)],
    )
