"""Infixes (Li & Liang 2021, section 7.3): virtual positions inside a row, between its source and its target.

The base runs over source and virtual embeddings as over any text. To their keys and values the trial adds its own, and
the target looks at the sums: as a prefix's columns, so that the virtual positions still see one another as they were.
"""

# B rows, T trials, S tokens, P infix positions, K key/value heads, D head dim

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Infixes:
    """Where the rows of a forward have their infixes; a row without one has an empty one at column 0."""

    starts: Tensor  # (B,) the first column
    lengths: Tensor  # (B,)
    embeddings: Tensor  # (B, P, width), padded on the right of P

    def inside(self, num_columns: int) -> Tensor:
        """Which columns belong to the infix, (B, S)."""
        past_start = torch.arange(num_columns, device=self.starts.device) - self.starts[:, None]
        return (past_start >= 0) & (past_start < self.lengths[:, None])

    def behind(self, num_columns: int) -> Tensor:
        """Which columns come after it, (B, S)."""
        return torch.arange(num_columns, device=self.starts.device) >= (self.starts + self.lengths)[:, None]

    def embed(self, embedded: Tensor) -> Tensor:
        """The rows' embeddings (B, S, width) with the virtual ones in place of what stands at the infix."""
        columns = torch.arange(embedded.shape[1], device=embedded.device) - self.starts[:, None]  # (B, S)
        index = columns.clamp(0, self.embeddings.shape[1] - 1)[..., None].expand_as(embedded)
        virtual = self.embeddings.to(embedded.dtype).gather(1, index)
        return torch.where(self.inside(embedded.shape[1])[..., None], virtual, embedded)

    def added(self, prefix: Tensor, own: Tensor) -> Tensor:
        """Prefixes (B, K, P, D) with the rows' own keys, or values, (B, K, S, D) at the infix added to them."""
        positions = torch.arange(prefix.shape[2], device=prefix.device)
        index = (self.starts[:, None] + positions).clamp(max=own.shape[2] - 1)  # (B, P)
        found = own.gather(2, index[:, None, :, None].expand_as(prefix))
        outside = positions >= self.lengths[:, None]
        return prefix + found.masked_fill(outside[:, None, :, None], 0.0)


def place_infixes(given: Sequence[Tensor | None], row_trial: Sequence[int], starts: Sequence[int]) -> Infixes | None:
    """The infixes of rows whose trials have these embeddings (P, width), or none; None where no trial has any."""
    some = next((infix for infix in given if infix is not None), None)
    if some is None:
        return None
    assert len(starts) == len(row_trial), "each row says where its infix starts"
    parts = [some[:0] if infix is None else infix for infix in given]
    lengths = [part.shape[0] for part in parts]
    padded = torch.stack([functional.pad(part, (0, 0, 0, max(lengths) - part.shape[0])) for part in parts])
    own = [start if lengths[trial] else 0 for start, trial in zip(starts, row_trial, strict=True)]
    return Infixes(
        starts=torch.tensor(own, device=some.device),
        lengths=torch.tensor([lengths[trial] for trial in row_trial], device=some.device),
        embeddings=padded[torch.tensor(row_trial, device=some.device)],
    )
